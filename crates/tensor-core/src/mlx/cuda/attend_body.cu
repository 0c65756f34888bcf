// The body of the custom kernel `attend`; attend.cu is its header and explains it.
//
// T is bfloat16 or float16; all arrays are contiguous and start at multiples of 16 bytes.
// Inputs, in order; `i` counts sequences:
//   qkv       T [sequences, (HEADS + 2 * KV_HEADS) * HEAD]: queries, key and value of the token at position `length`
//   inv_freq  f32 [PAIRS]
//   keysi     T [slots, KV_HEADS * HEAD]: rotated keys of the positions before it, each in the slot of its number; the
//             token's own is written to slot `length`
//   valuesi   T [slots, KV_HEADS * HEAD], likewise
//   lengthi   i32 [1]: positions before the token
//   afteri    any: what has to be computed first
// Outputs:
//   out       T [sequences, HEADS * HEAD]; if SPLIT the parts of each block, f32 [splits, sequences * HEADS * (HEAD + 2)]
//   rows      T [2 * sequences, KV_HEADS * HEAD]: each token's key, rotated, and its value
// Constants:
//   T; HEAD 64, 128 or 256; HEADS; KV_HEADS; PAIRS rotated; HALVES: pairs are (i, i + PAIRS), else neighbours; WARPS;
//   SPLIT: whether positions are divided among blocks; SCALE, the bits of the f32 factor of scores; keys, values, lengths:
//   pointers to the inputs of each sequence
// Threadgroup: (32 * WARPS, 1, 1). Grid, in threads: (sequences * HEADS * 32 * WARPS, splits, 1).
const int sequence = blockIdx.x / HEADS;
rillm::Attend<T, HEAD, HEADS, KV_HEADS, PAIRS, HALVES, WARPS, SPLIT>::run(
    qkv, const_cast<T*>(keys[sequence]), const_cast<T*>(values[sequence]), inv_freq, *lengths[sequence],
    __int_as_float(SCALE), out, rows);
