//! The thread of a session: where the session lives, how it ends, and that none is left.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use rillm_generate::{EngineSession, Error, Generator, Request, Result, Session, SharedSession, Want, Work};

/// Threads are counted, so one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Threads of sessions in this process, where the system tells.
fn threads() -> usize {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0 };
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    let names = tasks.filter_map(std::io::Result::ok).filter_map(name);
    names.filter(|name| name.trim() == "rillm-session").count()
}

/// How many there are where all should have ended: one that was joined may be listed for a moment more.
fn left() -> usize {
    for _ in 0..500 {
        if threads() == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    threads()
}

/// Picks the token after the last one, and says where it was used and dropped.
struct Counter {
    home: ThreadId,
    lens: Vec<usize>,
    dropped: Arc<AtomicUsize>,
}

/// A token that makes the session panic.
const BOMB: u32 = 13;

impl Counter {
    fn new(dropped: &Arc<AtomicUsize>) -> Self {
        Self { home: std::thread::current().id(), lens: Vec::new(), dropped: dropped.clone() }
    }

    fn here(&self) {
        assert_eq!(std::thread::current().id(), self.home);
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if std::thread::current().id() == self.home {
            self.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Session for Counter {
    fn vocab(&self) -> usize {
        self.here();
        20
    }
    fn context(&self) -> usize {
        self.here();
        100
    }
    fn weight_bytes(&self) -> usize {
        3
    }
    fn cache_bytes(&self) -> usize {
        self.here();
        self.lens.len()
    }
    fn open(&mut self) -> usize {
        self.here();
        self.lens.push(0);
        self.lens.len() - 1
    }
    fn close(&mut self, _: usize) {
        self.here();
    }
    fn len(&self, sequence: usize) -> usize {
        self.lens[sequence]
    }
    fn common_prefix(&self, _: usize, tokens: &[u32]) -> usize {
        tokens.iter().take_while(|t| **t == 1).count()
    }
    fn truncate(&mut self, sequence: usize, len: usize) -> Result<()> {
        self.here();
        self.lens[sequence] = len;
        Ok(())
    }
    fn step(&mut self, work: &[Work<'_>], logits: &mut Vec<f32>) -> Result<()> {
        self.here();
        logits.clear();
        for w in work {
            let last = *w.tokens.last().ok_or(Error::EmptyPrompt)?;
            assert_ne!(last, BOMB, "thirteen");
            self.lens[w.sequence] += w.tokens.len();
            logits.extend((0..20).map(|i| if i == last + 1 { 1.0 } else { 0.0 }));
        }
        Ok(())
    }
}

fn start(dropped: &Arc<AtomicUsize>) -> EngineSession {
    let dropped = dropped.clone();
    EngineSession::start(move || Ok::<_, Error>(Counter::new(&dropped))).unwrap()
}

#[test]
fn everything_happens_on_one_thread_which_ends_with_the_handle() {
    let _alone = alone();
    let dropped = Arc::default();
    let mut s = start(&dropped);
    assert_eq!((s.vocab(), s.context(), s.weight_bytes()), (20, 100, 3));
    let (a, b) = (s.open(), s.open());
    let work = |sequence, tokens| Work { sequence, tokens, ahead: 0, want: Want::Last };
    let mut logits = Vec::with_capacity(1000);
    let memory = logits.as_ptr();
    for _ in 0..3 {
        s.step(&[work(a, &[1, 2]), work(b, &[7])], &mut logits).unwrap();
        assert_eq!((logits.len(), logits[3], logits[28]), (40, 1.0, 1.0));
        assert_eq!(logits.as_ptr(), memory, "the caller's memory went there and back");
    }
    let mut picked = Vec::new();
    s.step_picking(&[work(a, &[1, 2]), work(b, &[7])], &mut picked).unwrap();
    assert_eq!(picked, [3, 8]);
    assert_eq!((s.len(a), s.len(b), s.cache_bytes()), (8, 4, 2));
    assert_eq!((s.common_prefix(a, &[1, 1, 2]), s.common_prefix(a, &[])), (2, 0));
    s.truncate(a, 1).unwrap();
    assert_eq!(s.len(a), 1);
    assert!(matches!(s.step(&[work(a, &[])], &mut logits), Err(Error::EmptyPrompt)));
    // To another thread, and from there.
    let s = std::thread::spawn(move || {
        s.open();
        SharedSession::new(s)
    });
    drop(s.join().unwrap());
    assert_eq!((dropped.load(Ordering::SeqCst), left()), (1, 0));
}

#[test]
fn a_thousand_leave_no_threads() {
    let _alone = alone();
    let dropped = Arc::default();
    for i in 0..1000 {
        let mut s = start(&dropped);
        if i % 2 == 0 {
            s.open();
        }
    }
    assert_eq!((dropped.load(Ordering::SeqCst), left()), (1000, 0));
    let many: Vec<_> = (0..20).map(|_| start(&dropped)).collect();
    if cfg!(target_os = "linux") {
        assert_eq!(threads(), 20, "they are counted");
    }
    drop(many);
    assert_eq!((dropped.load(Ordering::SeqCst), left()), (1020, 0));
}

fn is_thirteen<T: std::fmt::Debug>(result: Result<T>) {
    let error = result.unwrap_err();
    assert!(matches!(&error, Error::SessionThread { message } if message.contains("thirteen")), "{error}");
}

#[test]
fn a_panic_is_an_error_now_and_later() {
    let _alone = alone();
    let dropped = Arc::default();
    let shared = SharedSession::new(start(&dropped));
    let mut s = shared.clone();
    let a = s.open();
    let work = [Work { sequence: a, tokens: &[BOMB], ahead: 0, want: Want::Last }];
    let (mut logits, mut picked) = (Vec::new(), Vec::new());
    is_thirteen(s.step_picking(&work, &mut picked));
    assert_eq!((dropped.load(Ordering::SeqCst), left()), (1, 0), "it is gone");
    for _ in 0..2 {
        is_thirteen(s.step(&work, &mut logits));
        is_thirteen(s.step_picking(&work, &mut picked));
        is_thirteen(s.truncate(a, 0));
        s.close(a);
        assert_eq!((s.vocab(), s.context()), (20, 100), "what never changes is known");
        assert_eq!((s.len(a), s.common_prefix(a, &[1]), s.cache_bytes()), (0, 0, 0));
        assert_eq!(s.open(), usize::MAX);
    }
    let mut g = Generator::new(s, Request::new([1])).unwrap();
    is_thirteen(g.next().unwrap());
    assert!(g.next().is_none());

    // A panic where a generation is under way: its token is the last.
    let g = Generator::new(start(&dropped), Request::new([10])).unwrap();
    let said: Vec<_> = g.map(|t| t.map(|t| t.id)).collect();
    assert_eq!(said.len(), 4);
    assert_eq!(said[..3].iter().map(|t| *t.as_ref().unwrap()).collect::<Vec<_>>(), [11, 12, 13]);
    is_thirteen(said.into_iter().next_back().unwrap());
    assert_eq!(left(), 0);
}

#[test]
fn a_session_that_can_not_be_made_is_an_error_and_no_thread() {
    let _alone = alone();
    let error = EngineSession::start(|| Err::<Counter, _>(Error::EmptyPrompt)).unwrap_err();
    assert!(matches!(error, Error::EmptyPrompt));
    is_thirteen(EngineSession::start(|| -> Result<Counter> { panic!("thir{}", "teen") }));
    let error = EngineSession::start(|| -> Result<Counter> { std::panic::panic_any(5) }).unwrap_err();
    assert!(error.to_string().contains("no message"), "{error}");
    assert_eq!(left(), 0);
}
