// The body of the custom kernel `attend_merge`, which adds up what blocks of a split `attend` left; attend.cu is its
// header.
//
// Input:
//   parts  f32 [SPLITS, HEADS * (HEAD + 2)]
// Output:
//   out    T [sequences, HEADS of one * HEAD]
// Constants: T, HEAD, HEADS (of all sequences), SPLITS. Threadgroup: (HEAD, 1, 1). Grid, in threads: (HEADS * HEAD, 1, 1).
rillm::merge<T, HEAD, HEADS, SPLITS>(parts, out);
