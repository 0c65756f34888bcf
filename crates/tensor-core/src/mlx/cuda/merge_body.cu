// The body of the custom kernel `attend_merge`, which adds up what blocks of a split `attend` left; attend.cu is its
// header.
//
// Input:
//   parts  f32 [SPLITS, HEADS * (HEAD + 2)]
// Output:
//   out    T [1, HEADS * HEAD]
// Constants: T, HEAD, HEADS, SPLITS. Threadgroup: (HEAD, 1, 1). Grid, in threads: (HEADS * HEAD, 1, 1).
rillm::merge<T, HEAD, HEADS, SPLITS>(parts, out);
