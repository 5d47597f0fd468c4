# shellcheck shell=bash
# Sourced by launchers of training on a CPU: an update allocates and frees gigabytes, and with glibc's defaults a third of
# its time goes into page faults. jemalloc (Debian: libjemalloc2) keeps everything; glibc, told to, keeps what its main
# arena holds, and an update takes a sixth longer. Not with MALLOC_ARENA_MAX=1: memory grows by gigabytes at checkpoints.
# What was measured: docs/log.md, speed on a CPU.
for jemalloc in /usr/lib/*-linux-gnu/libjemalloc.so.2; do
    [[ -e "$jemalloc" ]] || continue
    export LD_PRELOAD=$jemalloc MALLOC_CONF=dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always
done
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_MAX_=0
export MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456
