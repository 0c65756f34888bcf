//! A counter-based random generator: each draw is a function of (seed, step, draw). It is not for secrets.
//!
//! Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC11).

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Random draws addressed by their place in a request, so that they depend on its seed and on nothing that
/// runs beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rng {
    seed: u64,
}

impl Rng {
    /// The generator of `seed`.
    pub fn new(seed: u64) -> Self {
        Rng { seed }
    }

    /// The 128 random bits at draw `draw` of step `step`.
    pub fn bits(&self, step: u64, draw: u32) -> [u32; 4] {
        philox([draw, 0, step as u32, (step >> 32) as u32], [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// The draw as a multiple of 2^-24 in `[0, 1)`.
    pub fn uniform_f32(&self, step: u64, draw: u32) -> f32 {
        (self.bits(step, draw)[0] >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// The draw as a multiple of 2^-53 in `[0, 1)`.
    pub fn uniform_f64(&self, step: u64, draw: u32) -> f64 {
        let [low, high, ..] = self.bits(step, draw);
        let word = u64::from(high) << 32 | u64::from(low);
        (word >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let products = [
            u64::from(counter[0]) * u64::from(MULTIPLIERS[0]),
            u64::from(counter[2]) * u64::from(MULTIPLIERS[1]),
        ];
        counter = [
            (products[1] >> 32) as u32 ^ counter[1] ^ key[0],
            products[1] as u32,
            (products[0] >> 32) as u32 ^ counter[3] ^ key[1],
            products[0] as u32,
        ];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with Random123 (`kat_vectors`, philox4x32 10).
    #[test]
    fn known_answers() {
        let zeros = philox([0; 4], [0; 2]);
        assert_eq!(zeros, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = philox([u32::MAX; 4], [u32::MAX; 2]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn every_part_of_the_address_counts() {
        let here = Rng::new(7).bits(3, 1);
        assert_eq!(here, Rng::new(7).bits(3, 1));
        for other in [
            Rng::new(8).bits(3, 1),
            Rng::new(7 | 1 << 40).bits(3, 1),
            Rng::new(7).bits(4, 1),
            Rng::new(7).bits(3 | 1 << 40, 1),
            Rng::new(7).bits(3, 2),
        ] {
            assert_ne!(here, other);
        }
    }

    #[test]
    fn uniforms_fill_the_unit_interval() {
        let rng = Rng::new(1);
        let steps = 50_000;
        let (mut sum, mut low, mut high) = (0.0, 1.0f64, 0.0f64);
        for step in 0..steps {
            let (single, double) = (rng.uniform_f32(step, 0), rng.uniform_f64(step, 1));
            assert!((0.0..1.0).contains(&single) && (0.0..1.0).contains(&double));
            sum += double;
            (low, high) = (low.min(double), high.max(double));
        }
        // Five standard deviations of the mean of 50 000 uniforms: 5 / sqrt(12 * 50 000).
        assert!((sum / steps as f64 - 0.5).abs() < 0.0065);
        assert!(low < 0.001 && high > 0.999);
    }
}
