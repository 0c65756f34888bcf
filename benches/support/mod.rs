//! What the benches of kernels measure against and how they report it. Not the kernels.

pub mod ceiling;
pub mod table;
