// The body of the custom kernel `convolve`: a row of each of some sequences through a depthwise convolution over it and the
// TAPS - 1 rows before it; step.cu is its header.
//
// Inputs, in order:
//   x       T [sequences, CHANNELS]
//   kept    f32 [sequences, TAPS - 1, CHANNELS]
//   kernel  [TAPS, CHANNELS], the oldest row's first; of T or float32, as `bias`
//   bias    [CHANNELS]; a null pointer of its name if there is none
// Outputs:
//   out     T [sequences, CHANNELS]
//   next    f32, as `kept`
// Constants: T; CHANNELS; TAPS, at least 2; SILU: whether the result goes through it.
// Threadgroup: (256, 1, 1). Grid, in threads: (ceil(CHANNELS / 256) * 256, sequences, 1).
rillm::Convolve<CHANNELS, TAPS, SILU>::run(x, kept, kernel, bias, out, next);
