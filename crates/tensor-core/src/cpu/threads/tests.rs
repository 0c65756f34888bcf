//! Jobs, panics, sleep and the pace of threads.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::AtomicUsize;

use super::*;

const ROUNDS: usize = if cfg!(miri) { 30 } else { 20_000 };

fn counts(n: usize) -> Vec<AtomicUsize> {
    (0..n).map(|_| AtomicUsize::new(0)).collect()
}

fn hit(count: &AtomicUsize) {
    count.fetch_add(1, Relaxed);
}

fn all_are(counts: &[AtomicUsize], n: usize) -> bool {
    counts.iter().all(|c| c.load(Relaxed) == n)
}

#[test]
fn every_task_runs_once_and_its_writes_are_seen() {
    for n in [1, 2, 3, 5, 11] {
        let threads = Threads::new(n).unwrap();
        assert_eq!(threads.count(), n);
        for round in 0..ROUNDS / n {
            let tasks = round % 7;
            let mut out = vec![0usize; tasks];
            let slots: Vec<Mutex<&mut usize>> = out.iter_mut().map(Mutex::new).collect();
            threads.run(tasks, &|i| **lock(&slots[i]) += i + round);
            drop(slots);
            assert!(out.iter().enumerate().all(|(i, &x)| x == i + round));
        }
    }
}

#[test]
fn tasks_are_claimed_in_order_or_in_runs() {
    let threads = Threads::new(2).unwrap();
    for _ in 0..if cfg!(miri) { 3 } else { 1000 } {
        // What a thread claims in order ascends; in runs, what is of its own run comes first, and ascends.
        let order = Mutex::new(vec![]);
        let mine = Mutex::new(vec![]);
        let me = std::thread::current().id();
        let note = |i| {
            lock(&order).push(i);
            if std::thread::current().id() == me {
                lock(&mine).push(i);
            }
        };
        threads.run_in_order(10, &note);
        assert!(lock(&mine).is_sorted() && lock(&order).len() == 10);
        lock(&mine).clear();
        threads.run(10, &note);
        let mine = lock(&mine);
        let own = mine.partition_point(|i| *i < 5);
        assert!(mine[..own].is_sorted() && mine[own..].is_sorted(), "{mine:?}");
        assert!(mine[own..].iter().all(|i| *i >= 5), "its own run comes first: {mine:?}");
    }
}

#[test]
fn workers_wake_after_sleeping() {
    let threads = Threads::new(3).unwrap();
    for _ in 0..if cfg!(miri) { 3 } else { 50 } {
        std::thread::sleep(4 * SPIN);
        let seen = counts(16);
        threads.run(16, &|i| hit(&seen[i]));
        assert!(all_are(&seen, 1));
    }
}

#[test]
fn several_threads_work_at_once() {
    // Each task waits for the other, so the run ends only if two threads take part.
    let threads = Threads::new(2).unwrap();
    let barrier = std::sync::Barrier::new(2);
    threads.run(2, &|_| {
        barrier.wait();
    });
}

#[test]
fn panics_reach_the_caller_and_leave_the_threads_usable() {
    let threads = Threads::new(3).unwrap();
    for round in 0..if cfg!(miri) { 4 } else { 200 } {
        let result = catch_unwind(AssertUnwindSafe(|| {
            threads.run(8, &|i| {
                if i == round % 8 {
                    // Without the panic hook's output.
                    resume_unwind(Box::new(i));
                }
            });
        }));
        assert_eq!(result.unwrap_err().downcast_ref::<usize>(), Some(&(round % 8)));
        let seen = counts(8);
        threads.run(8, &|i| hit(&seen[i]));
        assert!(all_are(&seen, 1));
    }
}

#[test]
fn a_panic_waits_for_the_tasks_of_others() {
    let threads = Threads::new(2).unwrap();
    let barrier = std::sync::Barrier::new(2);
    let done = AtomicBool::new(false);
    let result = catch_unwind(AssertUnwindSafe(|| {
        threads.run(2, &|i| {
            barrier.wait();
            if i == 0 {
                resume_unwind(Box::new("first"));
            }
            std::thread::sleep(Duration::from_millis(5));
            done.store(true, Relaxed);
        });
    }));
    assert!(result.is_err() && done.load(Relaxed));
}

#[test]
fn nested_runs_stay_on_their_thread() {
    let [outer, other] = [2, 3].map(|n| Threads::new(n).unwrap());
    let seen = counts(4);
    outer.run(4, &|_| {
        let me = std::thread::current().id();
        for threads in [&outer, &other] {
            threads.run(4, &|j| {
                assert_eq!(std::thread::current().id(), me);
                hit(&seen[j]);
            });
        }
    });
    assert!(all_are(&seen, 8));
}

#[test]
fn callers_take_turns() {
    let threads = Threads::new(3).unwrap();
    let seen = counts(5);
    let rounds = ROUNDS / 20;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..rounds {
                    threads.run(5, &|i| hit(&seen[i]));
                }
            });
        }
    });
    assert!(all_are(&seen, 4 * rounds));
}

#[test]
fn threads_end_idle_asleep_or_unused() {
    for n in 1..5 {
        drop(Threads::new(n).unwrap());
        let idle = Threads::new(n).unwrap();
        idle.run(9, &|_| ());
        drop(idle);
        let asleep = Threads::new(n).unwrap();
        asleep.run(9, &|_| ());
        std::thread::sleep(4 * SPIN);
        drop(asleep);
    }
}

#[test]
fn the_caller_works_alone_after_stalls_for_longer_each_time() {
    let mut pace = Pace { alone_until: None, alone_for: Duration::ZERO, paired_since: None };
    let (mut now, stall) = (Instant::now(), Duration::from_millis(3));
    // The first one, and some that are far apart.
    for _ in 0..4 {
        pace.stalled(now, stall);
        assert!(pace.alone_until.is_none());
        now += (BEARABLE + 2) * stall;
    }
    now -= BEARABLE * stall;
    pace.stalled(now, stall);
    assert_eq!(pace.alone_until, Some(now + ALONE[0]));
    for wanted in [10, 20, 40, 80, 160, 200, 200] {
        now = pace.alone_until.unwrap_or(now) + stall;
        pace.stalled(now, stall);
        assert_eq!(pace.alone_for, Duration::from_millis(wanted));
        assert_eq!(pace.alone_until, Some(now + pace.alone_for));
    }
    // A while without a stall is no reason to forget if the next one costs more than it gave; else half is forgiven.
    now = pace.alone_until.unwrap_or(now) + 3 * stall;
    pace.stalled(now, stall);
    assert_eq!(pace.alone_for, ALONE[1]);
    let alone_until = pace.alone_until;
    now = alone_until.unwrap_or(now) + (BEARABLE + 2) * stall;
    pace.stalled(now, stall);
    assert_eq!((pace.alone_for, pace.alone_until), (ALONE[1] / 2, alone_until));
}

#[test]
fn time_is_lost_by_waits_and_by_workers_on_the_callers_core() {
    let ms = Duration::from_millis;
    assert_eq!(lost(3, ms(6), ms(3)), None, "three tasks' time is no stall");
    assert_eq!(lost(3, ms(15), ms(12)), Some(ms(12)));
    assert_eq!(lost(1, SPIN, Duration::ZERO), None);
    assert_eq!(lost(0, SPIN, Duration::ZERO), None, "a worker that was awake was quicker");
    assert_eq!(lost(0, ms(1), Duration::ZERO), Some(ms(1)));
}

#[test]
#[cfg(all(target_os = "linux", not(miri)))]
fn sleeping_workers_use_no_cpu() {
    // User and system time of the workers, in clock ticks, from the kernel.
    let ticks = || -> u64 {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let stat = |t: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(t.unwrap().path().join("stat")).unwrap_or_default()
        };
        let of_worker = |s: &String| s.contains("(rillm-7)");
        let time = |s: String| {
            let fields: Vec<_> = s.rsplit(')').next().unwrap().split_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        tasks.map(stat).filter(of_worker).map(time).sum()
    };
    let threads = Threads::new(8).unwrap();
    threads.run(64, &|_| ());
    std::thread::sleep(Duration::from_millis(20));
    let before = ticks();
    std::thread::sleep(Duration::from_millis(300));
    assert!(ticks() - before <= 1);
}
