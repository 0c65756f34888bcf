// The body of the custom kernel `recur`: a token of each of some sequences through linear attention; step.cu is its header.
//
// T is float32, bfloat16 or float16; parameters are of any of these; all arrays are contiguous.
// Inputs, in order; what a rule does not use is a null pointer of its name instead:
//   state  f32 [sequences, HEADS, N, M]
//   q, k   T [sequences, KEY_HEADS, N]
//   v      T [sequences, HEADS, M]
//   p1     RULE 0: decay [HEADS]; 1: dt [sequences, HEADS]; 2: gate [sequences, HEADS, DECAYS]; 3: decay [sequences, HEADS, N]
//   p2     1: dt_bias [HEADS]; 2: dt_bias [HEADS, DECAYS]; 3: a [sequences, HEADS, N]
//   p3     1 and 2: a [HEADS]; 3: b [sequences, HEADS, N]
//   p4     1: d [HEADS]; 2: beta [sequences, HEADS]
// Outputs:
//   out    T [sequences, HEADS, M]
//   next   f32, as `state`
// Constants: T; RULE 0 constant decays, 1 Mamba-2's, 2 the gated delta rule, 3 RWKV-7's; HEADS; KEY_HEADS, which divides it;
//   N; M; DECAYS 1 or N; LEAST and MOST, the bits of the f32 limits of Mamba-2's steps; GROUPS; COLUMNS.
// Threadgroup: (GROUPS * COLUMNS, 1, 1). Grid, in threads: (sequences * HEADS * GROUPS * COLUMNS, ceil(M / COLUMNS), 1).
rillm::Recur<RULE, HEADS, KEY_HEADS, N, M, DECAYS, GROUPS, COLUMNS>::run(
    state, q, k, v, p1, p2, p3, p4, __int_as_float(LEAST), __int_as_float(MOST), out, next);
