# shellcheck shell=bash
# Sourced by launchers of training on a CPU: an update allocates and frees gigabytes, and with glibc's defaults a third of
# its time goes into page faults. Memory then stays at its peak. Not with MALLOC_ARENA_MAX=1: in one arena it
# grows by gigabytes at checkpoints. What was measured: docs/log.md, speed on a CPU.
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_MAX_=0
export MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456
