//! The worker threads of one CPU backend: a fork-join over numbered tasks. Not a scheduler, and shared by no two
//! backends.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Result;

/// How long a worker without work, or a caller without tasks, spins before it sleeps: longer than the serial
/// stretches between the operations of a layer, short beside anything a person notices.
const SPIN: Duration = Duration::from_micros(50);
/// Polls between two looks at the clock.
const POLLS: u32 = 16;
/// A wait for a worker that is longer than this, and than a few tasks, means that it lost its core.
const STALL: Duration = Duration::from_micros(200);
/// A stall that took less than this part of the time since the one before costs less than the workers give.
const BEARABLE: u32 = 8;
/// How long the caller works alone after other stalls, at first and at most.
const ALONE: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(200)];

/// Runs of consecutive tasks into which a job is cut, at most; a thread begins with one of its own, as far as there are
/// so many: tasks that follow one another read memory that does.
const RUNS: usize = 8;

/// Workers inside the open job.
const INSIDE: u64 = 0xffff;
/// The job may be entered.
const OPEN: u64 = 1 << 16;
/// The caller sleeps until the workers inside have left.
const WAITING: u64 = 1 << 17;
/// The workers shall end.
const STOP: u64 = 1 << 18;
/// One job. The bits from here up number the jobs.
const JOB: u64 = 1 << 32;

thread_local! {
    /// Whether this thread runs a task, so that runs started by the task stay on it.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// A value alone on its cache lines (two, because they are fetched in pairs).
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Padded<T>(pub(super) T);

type Body<'a> = dyn Fn(usize) + Sync + 'a;

/// What the workers shall do. Null between jobs.
#[derive(Clone, Copy)]
struct Job {
    body: Option<*const Body<'static>>,
    tasks: usize,
    /// Runs of consecutive tasks; a thread begins with its own.
    runs: usize,
    /// Its number.
    number: u32,
}

impl Job {
    const NONE: Self = Self { body: None, tasks: 0, runs: 1, number: 0 };

    fn new(tasks: usize, runs: usize, body: &Body<'_>) -> Self {
        // SAFETY: only the lifetime of the trait object changes. Workers follow the pointer only inside the job,
        // and `run` does not return, or unwind, before `close` has seen the last of them leave.
        let body = unsafe { std::mem::transmute::<*const Body<'_>, *const Body<'static>>(body) };
        Self { body: Some(body), tasks, runs, number: 0 }
    }
}

/// State that the caller shares with its workers.
struct Shared {
    /// Number of the job, `OPEN`, `WAITING`, `STOP` and the count of workers inside.
    gate: Padded<AtomicU64>,
    /// Tasks that were claimed of each run, and above them, from bit 32 on, the number of the job that they are of: a run that
    /// nobody has looked at yet still shows another job's.
    claimed: Vec<Padded<AtomicU64>>,
    /// Written only by the caller that holds the turn, while the gate is closed and nobody is inside; read only
    /// by those inside.
    job: UnsafeCell<Job>,
    /// Which workers sleep or are about to.
    asleep: Vec<AtomicBool>,
    /// The first panic of a task on a worker.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Where a caller sleeps that has set `WAITING`.
    left: (Mutex<()>, Condvar),
}

// SAFETY: all fields but `job` are `Sync` by themselves. `job` is written by the one caller that holds the turn
// while the gate is closed and its count is 0, and read by workers between `enter` and `leave`, when the count
// is not 0; the gate orders the two (see `enter` and `close`). The body behind the pointer is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` is followed only by workers inside an open job, wherever they run.
unsafe impl Send for Shared {}

/// When to do without the workers; also the turn of the caller that holds its lock.
struct Pace {
    /// Until when, after a stall.
    alone_until: Option<Instant>,
    /// For how long after the last stall that made it so.
    alone_for: Duration,
    /// When the last stall, and what work alone followed it, ended.
    paired_since: Option<Instant>,
}

/// The calling thread and `count() - 1` workers of its own.
///
/// Tasks are claimed one at a time, those of a thread's own run first and then what is left of the others', so a worker that
/// has lost its core to another process delays the caller only if it was in the middle of a task; when that happens often,
/// the caller works alone for a while. Workers without work sleep after some microseconds.
pub(crate) struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    pace: Mutex<Pace>,
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Threads({})", self.count())
    }
}

impl Threads {
    /// `n` threads, at least one: the caller and `n - 1` workers.
    ///
    /// # Errors
    /// [`Error::Threads`](crate::Error::Threads) if the system refuses a thread.
    pub(crate) fn new(n: usize) -> Result<Self> {
        let workers = n.clamp(1, INSIDE as usize) - 1;
        let shared = Arc::new(Shared {
            gate: Padded(AtomicU64::new(0)),
            claimed: (0..(workers + 1).min(RUNS)).map(|_| Padded(AtomicU64::new(0))).collect(),
            job: UnsafeCell::new(Job::NONE),
            asleep: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
            left: (Mutex::new(()), Condvar::new()),
        });
        let pace = Mutex::new(Pace { alone_until: None, alone_for: Duration::ZERO, paired_since: None });
        let mut threads = Self { shared, workers: Vec::with_capacity(workers), pace };
        for i in 0..workers {
            let shared = Arc::clone(&threads.shared);
            let builder = std::thread::Builder::new().name(format!("rillm-{}", i + 1));
            threads.workers.push(builder.spawn(move || shared.work(i))?);
        }
        Ok(threads)
    }

    /// Threads that take part in a run, the caller included.
    pub(crate) fn count(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body` once for each task in `0..tasks`, on this thread and the workers, and returns when all calls
    /// have returned. A run started by a task stays on the task's thread. If a call panics, so does the run, after
    /// the others have stopped; some tasks may then never have run.
    pub(crate) fn run(&self, tasks: usize, body: &Body<'_>) {
        self.run_in(self.shared.claimed.len(), tasks, body);
    }

    /// [`run`](Self::run) of tasks that differ: each is claimed after those before it.
    pub(crate) fn run_in_order(&self, tasks: usize, body: &Body<'_>) {
        self.run_in(1, tasks, body);
    }

    fn run_in(&self, runs: usize, tasks: usize, body: &Body<'_>) {
        if tasks <= 1 || self.workers.is_empty() || IN_TASK.get() {
            (0..tasks).for_each(body);
            return;
        }
        let mut pace = lock(&self.pace);
        let start = Instant::now();
        if pace.alone_until.is_some_and(|until| start < until) {
            drop(pace);
            (0..tasks).for_each(body);
            return;
        }
        let job = self.open(Job::new(tasks, runs, body));
        let mut mine = 0;
        let own = catch_unwind(AssertUnwindSafe(|| self.shared.claim(0, job, body, &mut mine)));
        let waited = self.shared.close();
        if mine == 0 || waited > STALL {
            let now = Instant::now();
            if let Some(lost) = lost(mine, now - start, waited) {
                pace.stalled(now, lost);
            }
        }
        let theirs = lock(&self.shared.panic).take();
        drop(pace);
        if let Some(payload) = own.err().or(theirs) {
            resume_unwind(payload);
        }
    }

    /// Numbers and publishes a job and wakes as many sleeping workers as it can use. The caller holds the turn and calls
    /// `Shared::close` before the job's body ends.
    fn open(&self, job: Job) -> Job {
        let shared = &*self.shared;
        let gate = (shared.gate.0.load(Relaxed) & !(JOB - 1)).wrapping_add(JOB);
        let job = Job { number: (gate / JOB) as u32, ..job };
        // SAFETY: the previous job was closed and left by all (or there was none), nobody enters before the store
        // to the gate below, and the turn keeps other callers out: nobody reads or writes `job` now.
        unsafe { *shared.job.get() = job };
        // Sequentially consistent, as is the read of `asleep`: a worker first says that it sleeps and then looks
        // at the gate, so one of the two sees the other.
        shared.gate.0.store(gate | OPEN, SeqCst);
        let mut wanted = job.tasks - 1;
        for (asleep, worker) in shared.asleep.iter().zip(&self.workers) {
            if wanted == 0 {
                break;
            }
            if asleep.load(SeqCst) && asleep.swap(false, SeqCst) {
                worker.thread().unpark();
            }
            wanted -= 1;
        }
        job
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.gate.0.fetch_or(STOP, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its tasks, so there is none to pass on.
            let _ = worker.join();
        }
    }
}

impl Pace {
    /// After a stall that lost so much and ends `now`: sets the caller to work alone if stalls cost more than the workers
    /// give, longer each time, until one costs less.
    fn stalled(&mut self, now: Instant, lost: Duration) {
        let since = self.paired_since.replace(now);
        let paired = since.map_or(Duration::MAX, |since| now.saturating_duration_since(since + lost));
        if lost < paired / BEARABLE {
            self.alone_for /= 2;
            return;
        }
        self.alone_for = (2 * self.alone_for).clamp(ALONE[0], ALONE[1]);
        self.alone_until = Some(now + self.alone_for);
        self.paired_since = self.alone_until;
    }
}

/// What a run of `took` lost because a worker and the caller were short of a core: the caller ran `mine` tasks and then
/// waited. [`None`] if nothing to speak of.
fn lost(mine: u32, took: Duration, waited: Duration) -> Option<Duration> {
    if mine == 0 {
        // All was done when the caller came to it: a worker that it woke ran on its core, and spun there after.
        return (took > SPIN).then_some(took);
    }
    let task = took.saturating_sub(waited) / mine;
    (waited > STALL + 4 * task).then_some(waited)
}

impl Shared {
    /// A worker's life.
    fn work(&self, me: usize) {
        let mut seen = 0;
        loop {
            let gate = self.wait_for_job(seen, me);
            if gate & STOP != 0 {
                return;
            }
            seen = gate / JOB;
            let Some(job) = self.enter(gate) else { continue };
            let Some(body) = job.body else { continue };
            // SAFETY: this thread is inside the job, so `run` has not returned and the body it borrowed lives.
            let body = unsafe { &*body };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.claim(me + 1, job, body, &mut 0))) {
                lock(&self.panic).get_or_insert(payload);
            }
            self.leave();
        }
    }

    /// Spins, then sleeps, until there is a job other than `seen` or an end. Returns the gate.
    fn wait_for_job(&self, seen: u64, me: usize) -> u64 {
        let is_news = |gate: u64| gate & STOP != 0 || (gate & OPEN != 0 && gate / JOB != seen);
        loop {
            if let Some(gate) = self.spin(is_news) {
                return gate;
            }
            self.asleep[me].store(true, SeqCst);
            if !is_news(self.gate.0.load(SeqCst)) {
                std::thread::park();
            }
            self.asleep[me].store(false, SeqCst);
        }
    }

    /// Polls the gate for [`SPIN`]; the gate if `done` holds of it.
    fn spin(&self, done: impl Fn(u64) -> bool) -> Option<u64> {
        let mut since = None;
        loop {
            for _ in 0..POLLS {
                let gate = self.gate.0.load(Acquire);
                if done(gate) {
                    return Some(gate);
                }
                std::hint::spin_loop();
            }
            if since.get_or_insert_with(Instant::now).elapsed() > SPIN {
                return None;
            }
        }
    }

    /// Joins the job that `gate` shows, unless it was closed meanwhile.
    fn enter(&self, mut gate: u64) -> Option<Job> {
        let job = gate / JOB;
        while gate & OPEN != 0 && gate / JOB == job {
            // The count is raised only on an open gate: a worker that is suspended before this line holds up
            // nobody. Acquires what the caller wrote before it opened the gate.
            match self.gate.0.compare_exchange_weak(gate, gate + 1, AcqRel, Relaxed) {
                // SAFETY: the count is not 0 until this thread leaves, so nobody writes `job`.
                Ok(_) => return Some(unsafe { *self.job.get() }),
                Err(now) => gate = now,
            }
        }
        None
    }

    /// Ends what [`enter`](Self::enter) began, and wakes the caller if it sleeps and this was the last.
    fn leave(&self) {
        let gate = self.gate.0.fetch_sub(1, AcqRel);
        if gate & INSIDE == 1 && gate & WAITING != 0 {
            // Taken so that the caller is either before its look at the gate or already asleep.
            drop(lock(&self.left.0));
            self.left.1.notify_all();
        }
    }

    /// Runs tasks until none is left, counting them in `ran`: those of the run of thread `me`, then of the other runs.
    fn claim(&self, me: usize, job: Job, body: &Body<'_>, ran: &mut u32) {
        let _in_task = InTask::enter();
        let Job { tasks, runs, .. } = job;
        for run in (0..runs).map(|i| (me + i) % runs) {
            let [start, end] = [run, run + 1].map(|run| run * tasks / runs);
            while let Some(i) = self.next(run, job, end - start) {
                *ran = ran.saturating_add(1);
                body(start + i);
            }
        }
    }

    /// Claims the next of the `tasks` tasks of a run.
    fn next(&self, run: usize, job: Job, tasks: usize) -> Option<usize> {
        let (claimed, none) = (&self.claimed[run].0, u64::from(job.number) * JOB);
        let mut seen = claimed.load(Relaxed);
        loop {
            let next = if seen / JOB * JOB == none { seen } else { none };
            let i = (next - none) as usize;
            // A run that has ended is not written to.
            if i >= tasks {
                return None;
            }
            match claimed.compare_exchange_weak(seen, next + 1, Relaxed, Relaxed) {
                Ok(_) => return Some(i),
                Err(now) => seen = now,
            }
        }
    }

    /// Lets no more workers in and waits until all inside have left. Returns how long that took, 0 if it was
    /// short. What the workers wrote is visible after it.
    fn close(&self) -> Duration {
        let empty = |gate: u64| gate & INSIDE == 0;
        if empty(self.gate.0.fetch_and(!OPEN, AcqRel)) {
            return Duration::ZERO;
        }
        let start = Instant::now();
        if self.spin(empty).is_some() {
            return Duration::ZERO;
        }
        // A worker lost its core in the middle of a task. Asleep, this thread leaves it a core to go on with.
        let mut guard = lock(&self.left.0);
        if !empty(self.gate.0.fetch_or(WAITING, AcqRel)) {
            while !empty(self.gate.0.load(Acquire)) {
                guard = self.left.1.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
        }
        start.elapsed()
    }
}

/// Marks this thread as running tasks.
struct InTask;

impl InTask {
    fn enter() -> Self {
        IN_TASK.set(true);
        Self
    }
}

impl Drop for InTask {
    fn drop(&mut self) {
        IN_TASK.set(false);
    }
}

/// Locks, whatever became of the last holder: the guarded values are replaced whole and always valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
