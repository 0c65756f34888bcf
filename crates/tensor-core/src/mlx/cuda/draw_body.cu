// The body of the custom kernel `draw`, a token from each row of logits; draw.cu is its header.
//
// Inputs:
//   logits   T [rows, VOCAB]
//   pair0 .. f32 [2] each, as few bytes as MLX leaves where the host wrote them; one after the other they hold the
//            temperature, the part of the mass that is left (0 or 1: all), the logarithm of the ratio to the best below which
//            nothing is left, whether filters see the tempered distribution (and ranks come first), how many tokens are left
//            (0: all), and for each row a point, a multiple of 2^-24 in [0, 1)
// Output:
//   ids      u32 [rows]
// Constants: T (float16, bfloat16 or float32); VOCAB; THREADS; pairs, pointers to pair0 ..
// Threadgroup: (THREADS, 1, 1). Grid, in threads: (rows * THREADS, 1, 1).
const auto number = [&](int i) { return pairs[i / 2][i % 2]; };
rillm::Draw<T, VOCAB, THREADS>::run(
    logits + size_t(blockIdx.x) * VOCAB,
    number(5 + blockIdx.x),
    {number(0), number(1), number(2), number(3) != 0.0f, (unsigned int)number(4)},
    ids + blockIdx.x);
