//! The suite on MLX, and in bfloat16 what its kernels for CUDA stand in for. `MLX_DEVICE=mlx-gpu` takes the graphics
//! card.

use super::*;
use rillm_tensor_core::mlx::{Mlx, MlxDevice};

fn device() -> MlxDevice {
    if std::env::var("MLX_DEVICE").is_ok_and(|d| d == "mlx-gpu") { MlxDevice::Gpu } else { MlxDevice::Best }
}

#[test]
fn exact() {
    conformance(&Mlx::builder().device(device()).precision(Precision::Exact).build().unwrap(), EXACT);
}

#[test]
fn default_bodies() {
    let mlx = Mlx::builder().device(device()).precision(Precision::Exact).build().unwrap();
    conformance(&Plain(mlx), EXACT);
}

/// bfloat16, in which our kernels for CUDA compute: projections and decoding against the operations one by one.
#[test]
fn halves() {
    let (rows, d) = (1, 128);
    let p = AttnParams::new(4, 2, 64);
    let width = p.q_dim() + 2 * p.k_dim();
    let random = &mut Random(77);
    let exact = Cpu::builder().precision(Precision::Exact).build().unwrap();
    let bf16 = Format::Float(FloatType::BF16);
    let affine = |bits, group| Format::Affine { bits, group, meta: FloatType::BF16 };
    for format in [bf16, affine(4, 64), affine(8, 64), affine(4, 32), affine(8, 128), affine(6, 64)] {
        let mlx = Mlx::builder().device(device()).build().unwrap();
        let table = matrix(random, bf16, 40, d);
        let (w, o) = (matrix(random, format, width, d), matrix(random, format, d, p.q_dim()));
        // Small: scores of a sharp softmax would make much of what bfloat16 rounds.
        let gain = RawTensor::from_f32(vec![d], &random.values(d, 0.1)).unwrap();
        let got = tokens(&mlx, &p, [&table, &w, &o, &gain], rows);
        let want = tokens(&exact, &p, [&table, &w, &o, &gain], rows);
        let most = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        for (got, want) in got.iter().zip(&want) {
            close(*got, f64::from(*want), 0.03 * f64::from(most), &format!("{}: {format}", mlx.name()));
        }
    }
}

/// Twelve tokens, one at a time, through a layer of attention with norm and residual, and a gated one.
fn tokens<B: Backend>(be: &B, p: &AttnParams, w: [&RawTensor<'_>; 4], rows: usize) -> Vec<f32> {
    let [table, qkv, o, gain] = w.map(|raw| be.prepare(std::slice::from_ref(raw)).unwrap());
    let inv_freq = (0..32).map(|i| 10_000f32.powf(-(i as f32) / 32.0)).collect();
    let rope = Rope { head_dim: 64, inv_freq, scale: 1.0, pairing: Pairing::Halves };
    let [mut k, mut v] = [0, 1].map(|_| be.kv_buffer(256, p.k_dim()).unwrap());
    let mut out = Vec::new();
    for position in 0..12 {
        let mut batch = Batch::default();
        batch.reset(position + 1);
        batch.push(0, position, rows);
        let x = be.embed(&table, Ids::Host(&[position as u32 * 3 + 1])).unwrap();
        let norm = Input::RmsNorm { x: &x, w: &gain, eps: 1e-5 };
        let all = be.project(norm, &qkv, None, None).unwrap();
        let [q, key, value] = be.split_cols(all, [p.q_dim(), p.k_dim(), p.k_dim()]).unwrap();
        let keys = Keys { x: &key, rope: Some((&rope, &batch)) };
        be.write_keys(&mut k, position, keys, 0..rows).unwrap();
        be.write_rows(&mut v, position, &value, 0..rows).unwrap();
        let q = be.rope(q, &rope, &batch).unwrap();
        let layout = KvLayout { len: position + 1, keep: 0, ring: 256 };
        let span = AttnSpan { rows: 0..rows, k: &k, v: &v, layout, sink: 0, window: None };
        let y = be.attention(&q, &[span], p, None).unwrap();
        let h = be.project(Input::Rows(&y), &o, None, Some(x)).unwrap();
        out.extend(values(be, &h));
        let [gates, _] = be.split_cols(be.linear(&h, &qkv, None).unwrap(), [2 * p.q_dim(), 0]).unwrap();
        let gated = Input::Gated { act: Activation::Silu, gate_up: &gates };
        out.extend(values(be, &be.project(gated, &o, None, Some(h)).unwrap()));
    }
    out
}
