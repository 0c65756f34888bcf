//! One line for each kernel: its time, its rate and how much that is of a ceiling measured beside it. The statistics
//! of the times are criterion's.

use std::time::{Duration, Instant};

use criterion::{Bencher, Criterion, Throughput};

/// Samples that criterion takes of a kernel.
const SAMPLES: usize = 10;

/// What is measured.
pub struct Kernel {
    /// Group, as criterion has it.
    pub group: &'static str,
    /// Name in the group.
    pub name: String,
    /// Bytes moved, or multiply-adds, of one call.
    pub amount: Throughput,
    /// What the ceiling is, for people.
    pub ceiling: &'static str,
}

struct Line {
    kernel: Kernel,
    /// Medians: seconds of a call, and what the ceiling was meanwhile, in the unit of the amount for each second.
    seconds: f64,
    ceiling: f64,
}

/// The lines so far.
#[derive(Default)]
pub struct Table(Vec<Line>);

impl Table {
    /// Measures `call`, which gets what `setup` made, and between its samples the ceiling. Nothing is set up for a
    /// kernel that criterion's filter leaves out.
    pub fn measure<S>(
        &mut self,
        c: &mut Criterion,
        kernel: Kernel,
        setup: impl FnOnce() -> S,
        ceiling: impl Fn(&S) -> f64,
        mut call: impl FnMut(&mut S),
    ) {
        let mut group = c.benchmark_group(kernel.group);
        group.sample_size(SAMPLES).nresamples(2000).throughput(kernel.amount.clone());
        group.warm_up_time(Duration::from_millis(50)).measurement_time(Duration::from_millis(200));
        let (mut setup, mut state) = (Some(setup), None);
        let (mut times, mut ceilings) = (Vec::new(), Vec::new());
        group.bench_function(&kernel.name, |b: &mut Bencher<'_>| {
            if let Some(setup) = setup.take() {
                state = Some(setup());
            }
            let Some(state) = &mut state else { return };
            b.iter_custom(|n| {
                ceilings.push(ceiling(state));
                let started = Instant::now();
                (0..n).for_each(|_| call(state));
                let elapsed = started.elapsed();
                times.push(elapsed.as_secs_f64() / n as f64);
                elapsed
            });
        });
        group.finish();
        // What comes before the last samples was warming up.
        let median = |values: &mut Vec<f64>| {
            let last = values.len().saturating_sub(SAMPLES);
            let samples = &mut values[last..];
            samples.sort_by(f64::total_cmp);
            samples.get(samples.len() / 2).copied()
        };
        if let (Some(seconds), Some(ceiling)) = (median(&mut times), median(&mut ceilings)) {
            self.0.push(Line { kernel, seconds, ceiling });
        }
    }

    /// Prints the lines.
    pub fn print(&self) {
        println!("\n{:58} {:>10} {:>16} {:>9}  ceiling", "kernel", "median", "rate", "of it");
        for Line { kernel, seconds, ceiling } in &self.0 {
            let (amount, unit) = match kernel.amount {
                Throughput::Bytes(n) => (n, "GB/s"),
                Throughput::Elements(n) => (n, "GMAC/s"),
                _ => continue,
            };
            let rate = amount as f64 / seconds;
            let name = format!("{}/{}", kernel.group, kernel.name);
            println!(
                "{name:58} {:>7.1} µs {:>9.2} {unit:6} {:>7.1} %  {:.1} {unit} {}",
                seconds * 1e6,
                rate / 1e9,
                100.0 * rate / ceiling,
                ceiling / 1e9,
                kernel.ceiling,
            );
        }
    }
}
