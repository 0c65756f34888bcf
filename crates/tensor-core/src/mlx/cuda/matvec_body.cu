// The body of the custom kernel `matvec`: y = W f(x) (+ bias) (+ residual); matvec.cu is its header and explains it.
//
// T is bfloat16 or float16; all arrays are contiguous and start at multiples of 16 bytes.
// Inputs, in order; what a set of constants does not use is a null pointer of its name instead, declared before this:
//   x         T [ROWS, IN], or [ROWS, 2 * IN] (gate, then up) if PROLOGUE is 2 or 3;
//             [chosen, ROWS, ...] if EXPERTS is 2
//   w         u32 [OUT, IN * BITS / 32], or T [OUT, IN] if BITS is 16; [experts, OUT, ...] unless EXPERTS is 0
//   scales    T [OUT, IN / GROUP], likewise; w = scale * code + bias of the group
//   biases    T [OUT, IN / GROUP], likewise
//   gain      T [IN], of the norm
//   bias      T [OUT]; [experts, OUT] unless EXPERTS is 0
//   residual  T [ROWS, OUT]; [chosen, ROWS, OUT] unless EXPERTS is 0
//   experts   u32 [chosen]
// Output:
//   out       T [ROWS, OUT]; [chosen, ROWS, OUT] unless EXPERTS is 0
// Constants:
//   T; BITS 4, 8 or 16; GROUP 32, 64 or 128 (any if BITS is 16); IN; OUT; ROWS 1 to 8;
//   PROLOGUE 0 none, 1 RMS norm, 2 silu(gate) * up, 3 gelu_tanh(gate) * up; in float32, rounded once to T;
//   EPS, the bits of the norm's f32; BIAS, RESIDUAL bools; EXPERTS 0 none, 1 one input for all chosen, 2 an input for each;
//   STEPS (loads in flight: 16-byte pairs per lane), WARPS (of a block, along a row).
//   STEPS * 512 / BITS is a multiple of GROUP, up to 8 * GROUP. WARPS <= ceil(IN * BITS / (STEPS * 512)).
// Threadgroup: (32 * WARPS, 1, 1). Grid, in threads: (blocks * 32 * WARPS, chosen or 1, 1), where blocks is any
//   number from 1 to ceil(OUT / 16); blocks that all fit on the device at once read the input least often.
// Shared memory (Matvec::SHARED): with C = S * ceil(IN / S) columns, S = STEPS * 512 / BITS, the sum of
//   1024 / BITS + ROWS * (2 * C + (64 if C is a multiple of 64 else 0)) + (8 * ROWS * C / GROUP if BITS < 16 else 0)
//   + 128 * WARPS * ROWS + (4 * WARPS * ROWS if PROLOGUE is 1 else 0) bytes; up to 227 KiB.
extern __shared__ uint4 shared_memory[];
rillm::Matvec<T, BITS, GROUP, IN, OUT, ROWS, PROLOGUE, BIAS, RESIDUAL, EXPERTS, STEPS, WARPS>::run(
    {x, w, scales, biases, gain, __int_as_float(EPS), bias, residual, experts, out},
    shared_memory);
