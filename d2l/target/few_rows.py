"""Products of a few rows with a bfloat16 matrix on a CPU, at twice the rate of XLA's.

A decode step reads every weight once, so that it should end where memory does; XLA's product of few rows reaches half
of that on a CPU. This kernel is LLVM's text, compiled by llvmlite for the machine's own instructions in a tenth of a
second, and called through XLA's foreign function interface (structs of jaxlib's `xla/ffi/api/c_api.h`). Blocks of the
matrix are shared with XLA's own threads: whoever is free takes the next one, and nobody waits for a thread that has not
begun. At 16 rows the two are even.

Letters: N rows, o outputs, i inputs.
"""

import ctypes
import functools

import jax
import jax.numpy as jnp
import llvmlite.binding as llvm

from d2l import mesh

MOST_ROWS = 16
TARGET = "d2l_few_rows"


def usable(x: jax.Array, w: jax.Array) -> bool:
    """Whether `few_rows_product` takes `x` `[..., i]` and `w`: few bfloat16 rows, not empty, on one device."""
    few = 0 < x.size <= MOST_ROWS * x.shape[-1]
    return few and x.dtype == w.dtype == jnp.bfloat16 and not mesh.has_mesh()


@jax.custom_jvp
def few_rows_product(x_Ni: jax.Array, w_oi: jax.Array) -> jax.Array:
    """x W^T of bfloat16 arrays, summed in float32, float32 `[N, o]`; XLA's own product where there is no CPU."""

    def kernel(x_Ni, w_oi):
        register()
        out = jax.ShapeDtypeStruct((x_Ni.shape[0], w_oi.shape[0]), jnp.float32)
        return jax.ffi.ffi_call(TARGET, out, vmap_method="sequential")(x_Ni.astype(jnp.float32), w_oi)

    return jax.lax.platform_dependent(x_Ni, w_oi, cpu=kernel, default=_product)


@few_rows_product.defjvp
def _few_rows_jvp(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    return few_rows_product(x, w), _product(dx, w) + _product(x, dw)


def _product(x_Ni: jax.Array, w_oi: jax.Array) -> jax.Array:
    return jnp.einsum("ni,oi->no", x_Ni, w_oi, preferred_element_type=jnp.float32)


@functools.cache
def register() -> llvm.ExecutionEngine:
    """Compile the kernel and make it known to XLA, once a process. What is returned lives as long as XLA may call."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    module = llvm.parse_assembly(PROGRAM)
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    jax.ffi.register_ffi_target(TARGET, capsule(engine.get_function_address("handler"), None, None), platform="cpu")
    return engine


# ---------------------------------------------------------------- the kernel

TOGETHER = (4, 2, 1)  # rows of x that are multiplied with one load of weights, the most first
WIDTH = 32  # weights that are multiplied at once: the 64 bytes of a cache line
REDUCE = f"llvm.vector.reduce.fadd.v{WIDTH}f32"
AHEAD = 4096  # bytes that are asked for before they are needed: a core's own guesses end at a page


def _dot(rows: int) -> str:
    """`@dot{rows}`: one row of the matrix times `rows` rows of x.

    The size of its vectors is given, not the machine's, so that a row's sum is the same beside any others.
    """
    every = range(rows)

    def lanes(kind: str, name: str) -> str:
        """Type `name` of the loop `kind`: `v` of vectors, or `s` of single numbers, those that are left."""
        return f"<{WIDTH} x {name}>" if kind == "v" else name

    def add(kind: str) -> list[str]:
        """bfloat16 weights, which are the upper halves of float32 numbers, times x, added to a sum for each row."""
        of, to, real = (lanes(kind, name) for name in ("i16", "i32", "float"))
        return [
            f"  %{kind}.bits = load {of}, ptr %{kind}.at, align 2",
            f"  %{kind}.wide = zext {of} %{kind}.bits to {to}",
            f"  %{kind}.high = shl {to} %{kind}.wide, {'splat (i32 16)' if kind == 'v' else 16}",
            f"  %{kind}.weight = bitcast {to} %{kind}.high to {real}",
            *(
                f"  %{kind}.x{r} = getelementptr float, ptr %x{r}, i64 %{kind}.i\n"
                f"  %{kind}.value{r} = load {real}, ptr %{kind}.x{r}, align 4\n"
                f"  %{kind}.part{r} = fmul fast {real} %{kind}.weight, %{kind}.value{r}\n"
                f"  %{kind}.new{r} = fadd fast {real} %{kind}.sum{r}, %{kind}.part{r}"
                for r in every
            ),
        ]

    vector = lanes("v", "float")
    return "\n".join(
        [
            f"define internal void @dot{rows}(ptr %x, ptr %w, ptr %y, i64 %size, i64 %out) {{",
            "entry:",
            *(f"  %line{r} = mul i64 %size, {r}\n  %x{r} = getelementptr float, ptr %x, i64 %line{r}" for r in every),
            f"  %whole = and i64 %size, {-WIDTH}",
            "  br label %vectors",
            "vectors:",
            "  %v.i = phi i64 [ 0, %entry ], [ %v.next, %vector ]",
            *(f"  %v.sum{r} = phi {vector} [ zeroinitializer, %entry ], [ %v.new{r}, %vector ]" for r in every),
            "  %v.more = icmp ult i64 %v.i, %whole",
            "  br i1 %v.more, label %vector, label %sums",
            "vector:",
            "  %v.at = getelementptr i16, ptr %w, i64 %v.i",
            f"  %ahead = getelementptr i8, ptr %v.at, i64 {AHEAD}",
            "  call void @llvm.prefetch.p0(ptr %ahead, i32 0, i32 3, i32 1)",  # to read, to stay, data
            *add("v"),
            f"  %v.next = add nuw nsw i64 %v.i, {WIDTH}",
            "  br label %vectors",
            "sums:",
            *(f"  %sum{r} = call fast float @{REDUCE}(float 0.0, {vector} %v.sum{r})" for r in every),
            "  br label %rest",
            "rest:",
            "  %s.i = phi i64 [ %whole, %sums ], [ %s.next, %single ]",
            *(f"  %s.sum{r} = phi float [ %sum{r}, %sums ], [ %s.new{r}, %single ]" for r in every),
            "  %s.more = icmp ult i64 %s.i, %size",
            "  br i1 %s.more, label %single, label %end",
            "single:",
            "  %s.at = getelementptr i16, ptr %w, i64 %s.i",
            *add("s"),
            "  %s.next = add nuw nsw i64 %s.i, 1",
            "  br label %rest",
            "end:",
            *(
                f"  %to{r} = mul i64 %out, {r}\n"
                f"  %y{r} = getelementptr float, ptr %y, i64 %to{r}\n"
                f"  store float %s.sum{r}, ptr %y{r}"
                for r in every
            ),
            "  ret void",
            "}",
        ]
    )


def _all_rows() -> str:
    """`@dots`: one row of the matrix times all rows of x, as many at a time as there is a `@dot` for."""
    lines = ["define internal void @dots(ptr %x, ptr %w, ptr %y, i64 %size, i64 %out, i64 %rows) {", "entry:"]
    before, start = "entry", "0"
    lines.append(f"  br label %try{TOGETHER[0]}")
    for k, following in zip(TOGETHER, (*(f"try{k}" for k in TOGETHER[1:]), "end"), strict=True):
        lines += [
            f"try{k}:",
            f"  %n{k} = phi i64 [ {start}, %{before} ], [ %after{k}, %do{k} ]",
            f"  %after{k} = add i64 %n{k}, {k}",
            f"  %fits{k} = icmp ule i64 %after{k}, %rows",
            f"  br i1 %fits{k}, label %do{k}, label %{following}",
            f"do{k}:",
            f"  %in{k} = mul i64 %n{k}, %size",
            f"  %xn{k} = getelementptr float, ptr %x, i64 %in{k}",
            f"  %to{k} = mul i64 %n{k}, %out",
            f"  %yn{k} = getelementptr float, ptr %y, i64 %to{k}",
            f"  call void @dot{k}(ptr %xn{k}, ptr %w, ptr %yn{k}, i64 %size, i64 %out)",
            f"  br label %try{k}",
        ]
        before, start = f"try{k}", f"%n{k}"
    return "\n".join([*lines, "end:", "  ret void", "}"])


LINE = "\n"
PROGRAM = f"""
%List = type {{ i64, ptr, i64, ptr, ptr }}                     ; size, extension, count, kinds, buffers
%Buffer = type {{ i64, ptr, i32, ptr, i64, ptr }}              ; size, extension, dtype, data, rank, dims
%Frame = type {{ i64, ptr, ptr, ptr, i32, %List, %List }}      ; size, extension, API, context, stage, and two lists
%Version = type {{ i64, ptr, i32, i32 }}                       ; size, extension, major, minor
%Metadata = type {{ i64, %Version }}
%Extension = type {{ i64, i32, ptr, ptr }}                     ; size, kind, next, metadata
%Api = type {{ i64, ptr, %Version, ptr, [20 x ptr] }}          ; size, extension, version, internal, functions
%Schedule = type {{ i64, ptr, ptr, ptr, ptr }}                 ; size, extension, context, function, data
%Threads = type {{ i64, ptr, ptr, ptr }}                       ; size, extension, context, count
; Matrix, x, y; outputs, inputs, rows; blocks, the next one, how many are done; who may still look at this.
%Job = type {{ ptr, ptr, ptr, i64, i64, i64, i64, i64, i64, i64 }}

declare ptr @malloc(i64)
declare void @free(ptr)

{LINE.join(map(_dot, TOGETHER))}
{_all_rows()}

; Blocks, until none is left.
define internal void @work(ptr %job) {{
entry:
  %all = load %Job, ptr %job
  %w = extractvalue %Job %all, 0
  %x = extractvalue %Job %all, 1
  %y = extractvalue %Job %all, 2
  %out = extractvalue %Job %all, 3
  %size = extractvalue %Job %all, 4
  %rows = extractvalue %Job %all, 5
  %blocks = extractvalue %Job %all, 6
  %next = getelementptr %Job, ptr %job, i32 0, i32 7
  %done = getelementptr %Job, ptr %job, i32 0, i32 8
  br label %take
take:
  %block = atomicrmw add ptr %next, i64 1 seq_cst
  %left = icmp ult i64 %block, %blocks
  br i1 %left, label %begin, label %end
begin:
  %a = mul i64 %block, %out
  %first = udiv i64 %a, %blocks
  %b = add i64 %a, %out
  %last = udiv i64 %b, %blocks
  br label %row
row:
  %o = phi i64 [ %first, %begin ], [ %following, %row ]
  %at = mul i64 %o, %size
  %wo = getelementptr i16, ptr %w, i64 %at
  %yo = getelementptr float, ptr %y, i64 %o
  call void @dots(ptr %x, ptr %wo, ptr %yo, i64 %size, i64 %out, i64 %rows)
  %following = add i64 %o, 1
  %again = icmp ult i64 %following, %last
  br i1 %again, label %row, label %counted
counted:
  %before = atomicrmw add ptr %done, i64 1 seq_cst
  br label %take
end:
  ret void
}}

; The last one to leave a job frees it.
define internal void @leave(ptr %job) {{
  %users = getelementptr %Job, ptr %job, i32 0, i32 9
  %before = atomicrmw sub ptr %users, i64 1 seq_cst
  %last = icmp eq i64 %before, 1
  br i1 %last, label %free, label %end
free:
  call void @free(ptr %job)
  br label %end
end:
  ret void
}}

define internal void @help(ptr %job) {{
  call void @work(ptr %job)
  call void @leave(ptr %job)
  ret void
}}

define ptr @handler(ptr %frame) {{
entry:
  %call = load %Frame, ptr %frame
  %extension = extractvalue %Frame %call, 1
  %api = extractvalue %Frame %call, 2
  %context = extractvalue %Frame %call, 3
  %plain = icmp eq ptr %extension, null
  br i1 %plain, label %run, label %asked
asked:                                        ; for the version of this interface, when it is registered
  %kindp = getelementptr %Extension, ptr %extension, i32 0, i32 1
  %kind = load i32, ptr %kindp
  %version = icmp eq i32 %kind, 1
  br i1 %version, label %tell, label %run
tell:
  %metadatap = getelementptr %Extension, ptr %extension, i32 0, i32 3
  %metadata = load ptr, ptr %metadatap
  %major = getelementptr %Metadata, ptr %metadata, i32 0, i32 1, i32 2
  %minor = getelementptr %Metadata, ptr %metadata, i32 0, i32 1, i32 3
  store i32 0, ptr %major
  store i32 1, ptr %minor
  ret ptr null
run:
  %arguments = extractvalue %Frame %call, 5, 4
  %results = extractvalue %Frame %call, 6, 4
  %second = getelementptr ptr, ptr %arguments, i32 1
  %xp = load ptr, ptr %arguments
  %wp = load ptr, ptr %second
  %yp = load ptr, ptr %results
  %x = load %Buffer, ptr %xp
  %w = load %Buffer, ptr %wp
  %y = load %Buffer, ptr %yp
  %xdata = extractvalue %Buffer %x, 3
  %wdata = extractvalue %Buffer %w, 3
  %ydata = extractvalue %Buffer %y, 3
  %xdims = extractvalue %Buffer %x, 5
  %wdims = extractvalue %Buffer %w, 5
  %inner = getelementptr i64, ptr %wdims, i32 1
  %rows = load i64, ptr %xdims
  %out = load i64, ptr %wdims
  %size = load i64, ptr %inner
  %weights = mul i64 %out, %size
  %many = lshr i64 %weights, 16               ; blocks of 65,536 weights, of one row of the matrix at least
  %some = call i64 @llvm.umax.i64(i64 %many, i64 1)
  %blocks = call i64 @llvm.umin.i64(i64 %some, i64 %out)

  %count = alloca i64
  store i64 1, ptr %count
  %threads = alloca %Threads
  %threads1 = insertvalue %Threads {{ i64 32, ptr null, ptr null, ptr null }}, ptr %context, 2
  %threads2 = insertvalue %Threads %threads1, ptr %count, 3
  store %Threads %threads2, ptr %threads
  %countfp = getelementptr %Api, ptr %api, i32 0, i32 4, i32 12
  %countf = load ptr, ptr %countfp
  %trouble = call ptr %countf(ptr %threads)
  %fine = icmp eq ptr %trouble, null
  br i1 %fine, label %share, label %failed
failed:
  ret ptr %trouble
share:
  %cores = load i64, ptr %count
  %useful = call i64 @llvm.umin.i64(i64 %cores, i64 %blocks)
  %most = call i64 @llvm.umin.i64(i64 %useful, i64 16)
  %users = call i64 @llvm.umax.i64(i64 %most, i64 1)
  %job = call ptr @malloc(i64 80)
  %job0 = insertvalue %Job zeroinitializer, ptr %wdata, 0
  %job1 = insertvalue %Job %job0, ptr %xdata, 1
  %job2 = insertvalue %Job %job1, ptr %ydata, 2
  %job3 = insertvalue %Job %job2, i64 %out, 3
  %job4 = insertvalue %Job %job3, i64 %size, 4
  %job5 = insertvalue %Job %job4, i64 %rows, 5
  %job6 = insertvalue %Job %job5, i64 %blocks, 6
  %job9 = insertvalue %Job %job6, i64 %users, 9
  store %Job %job9, ptr %job
  %schedule = alloca %Schedule
  %task0 = insertvalue %Schedule {{ i64 40, ptr null, ptr null, ptr @help, ptr null }}, ptr %context, 2
  %task1 = insertvalue %Schedule %task0, ptr %job, 4
  store %Schedule %task1, ptr %schedule
  %schedulefp = getelementptr %Api, ptr %api, i32 0, i32 4, i32 11
  %schedulef = load ptr, ptr %schedulefp
  br label %ask
ask:
  %user = phi i64 [ 1, %share ], [ %onemore, %asking ]
  %wanted = icmp ult i64 %user, %users
  br i1 %wanted, label %asking, label %own
asking:
  %refused = call ptr %schedulef(ptr %schedule)
  %onemore = add i64 %user, 1
  %scheduled = icmp eq ptr %refused, null
  br i1 %scheduled, label %ask, label %alone
alone:                                        ; those that were not asked leave; the product is made all the same
  %missing = sub i64 %users, %user
  %usersp = getelementptr %Job, ptr %job, i32 0, i32 9
  %were = atomicrmw sub ptr %usersp, i64 %missing seq_cst
  br label %own
own:
  %error = phi ptr [ null, %ask ], [ %refused, %alone ]
  call void @work(ptr %job)
  %donep = getelementptr %Job, ptr %job, i32 0, i32 8
  br label %wait
wait:
  %done = load atomic i64, ptr %donep acquire, align 8
  %all = icmp uge i64 %done, %blocks
  br i1 %all, label %finish, label %wait
finish:
  call void @leave(ptr %job)
  ret ptr %error
}}

declare i64 @llvm.umax.i64(i64, i64)
declare i64 @llvm.umin.i64(i64, i64)
declare float @{REDUCE}(float, <{WIDTH} x float>)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
"""
