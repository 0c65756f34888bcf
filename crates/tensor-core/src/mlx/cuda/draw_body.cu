// The body of the custom kernel `draw`, a token from each row of logits; draw.cu is its header.
//
// Inputs:
//   logits   T [rows, VOCAB]
//   numbers  f32 [5 + rows]: the temperature, the part of the mass that is left (0 or 1: all), the logarithm of the ratio to
//            the best below which nothing is left, whether filters see the tempered distribution (and ranks come first),
//            how many tokens are left (0: all), and for each row a point, a multiple of 2^-24 in [0, 1)
// Output:
//   ids      u32 [rows]
// Constants: T (float16, bfloat16 or float32); VOCAB; THREADS.
// Threadgroup: (THREADS, 1, 1). Grid, in threads: (rows * THREADS, 1, 1).
rillm::Draw<T, VOCAB, THREADS>::run(
    logits + size_t(blockIdx.x) * VOCAB,
    numbers[5 + blockIdx.x],
    {numbers[0], numbers[1], numbers[2], numbers[3] != 0.0f, (unsigned int)numbers[4]},
    ids + blockIdx.x);
