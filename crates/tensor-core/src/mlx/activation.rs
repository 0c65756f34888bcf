//! Nonlinearities in MLX's operations.

use mlx_rs::{Array, ops};

use crate::Activation;

/// `act(x)`.
pub(super) fn activated(act: Activation, x: &Array) -> mlx_rs::error::Result<Array> {
    let number = |value: f32| Array::from_f32(value).as_dtype(x.dtype());
    match act {
        Activation::Identity => Ok(x.clone()),
        Activation::Silu => ops::sigmoid(x)?.multiply(x),
        Activation::Gelu => {
            let phi = ops::erf(x.multiply(number(std::f32::consts::FRAC_1_SQRT_2)?)?)?;
            phi.add(number(1.0)?)?.multiply(number(0.5)?)?.multiply(x)
        }
        Activation::GeluTanh => {
            let cube = x.multiply(x)?.multiply(x)?.multiply(number(0.044_715)?)?;
            let inner = x.add(cube)?.multiply(number(0.797_884_6)?)?;
            ops::tanh(inner)?.add(number(1.0)?)?.multiply(number(0.5)?)?.multiply(x)
        }
        Activation::Relu => ops::maximum(x, number(0.0)?),
        Activation::Relu2 => ops::maximum(x, number(0.0)?)?.square(),
        Activation::Sigmoid => ops::sigmoid(x),
        Activation::Clip { limit } => ops::maximum(ops::minimum(x, number(limit)?)?, number(-limit)?),
        Activation::XIelu { positive, negative, slope } => {
            let (p, n) = (ops::maximum(x, number(0.0)?)?, ops::minimum(x, number(0.0)?)?);
            let above = p.multiply(number(positive)?)?.add(number(slope)?)?.multiply(&p)?;
            // `-negative n` alone may overflow where the slope makes up for it.
            let line = n.multiply(number(slope - negative)?)?;
            above.add(ops::expm1(&n)?.multiply(number(negative)?)?.add(line)?)
        }
        Activation::ClippedSwish { alpha, limit } => {
            let x = ops::minimum(x, number(limit)?)?;
            ops::sigmoid(x.multiply(number(alpha)?)?)?.multiply(&x)
        }
    }
}
