//! A session on a thread of its own, for backends whose tensors belong to the thread that made them. Not a queue: it
//! answers one call at a time, and the caller waits.

use std::any::Any;
use std::cell::{Cell, OnceCell};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::{Error, Result, Session, Want, Work};

/// A session that is made, used and dropped on one thread, which ends with this handle.
///
/// If the session panics, that call and all later ones fail with [`Error::SessionThread`]; those that can't fail know
/// of no sequence and no tokens then.
pub struct EngineSession {
    /// `None` only while the handle is dropped.
    calls: Option<SyncSender<(Call, Memory)>>,
    answers: Receiver<(Result<usize>, Memory)>,
    /// `None` once it has been seen to its end.
    thread: Cell<Option<JoinHandle<()>>>,
    /// Why it ended.
    ended: OnceCell<String>,
    memory: Cell<Memory>,
    vocab: usize,
    context: usize,
    weight_bytes: usize,
}

/// A method of [`Session`]; what it takes and gives besides numbers is in [`Memory`].
#[derive(Clone, Copy)]
enum Call {
    CacheBytes,
    Open,
    Close(usize),
    Len(usize),
    CommonPrefix(usize),
    Truncate(usize, usize),
    Step,
    StepPicking,
}

/// What travels with a call and comes back with its answer.
#[derive(Default)]
struct Memory {
    work: Vec<Piece>,
    /// Tokens of all pieces, end to end.
    tokens: Vec<u32>,
    picked: Vec<u32>,
    logits: Vec<f32>,
}

/// [`Work`] whose tokens are a range of [`Memory::tokens`].
struct Piece {
    sequence: usize,
    tokens: Range<usize>,
    ahead: usize,
    want: Want,
}

impl Memory {
    fn set(&mut self, work: &[Work<'_>]) {
        self.work.clear();
        self.tokens.clear();
        for w in work {
            let start = self.tokens.len();
            self.tokens.extend_from_slice(w.tokens);
            let tokens = start..self.tokens.len();
            self.work.push(Piece { sequence: w.sequence, tokens, ahead: w.ahead, want: w.want });
        }
    }

    fn answer(&mut self, call: Call, session: &mut impl Session) -> Result<usize> {
        let tokens = &self.tokens;
        let piece = |p: &Piece| Work {
            sequence: p.sequence,
            tokens: &tokens[p.tokens.clone()],
            ahead: p.ahead,
            want: p.want,
        };
        let work = || self.work.iter().map(piece).collect::<Vec<_>>();
        let done = match call {
            Call::CacheBytes => return Ok(session.cache_bytes()),
            Call::Open => return Ok(session.open()),
            Call::Len(sequence) => return Ok(session.len(sequence)),
            Call::CommonPrefix(sequence) => return Ok(session.common_prefix(sequence, tokens)),
            Call::Close(sequence) => {
                session.close(sequence);
                Ok(())
            }
            Call::Truncate(sequence, len) => session.truncate(sequence, len),
            Call::Step => session.step(&work(), &mut self.logits),
            Call::StepPicking => session.step_picking(&work(), &mut self.picked),
        };
        done.map(|()| 0)
    }
}

/// Answers calls until there is no handle any more.
fn serve(
    mut session: impl Session,
    calls: &Receiver<(Call, Memory)>,
    answers: &SyncSender<(Result<usize>, Memory)>,
) {
    while let Ok((call, mut memory)) = calls.recv() {
        let answer = memory.answer(call, &mut session);
        if answers.send((answer, memory)).is_err() {
            return;
        }
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("with no message"))
}

impl EngineSession {
    /// Starts a thread, makes a session on it and waits for that.
    ///
    /// # Errors
    /// Those of `make`; [`Error::SessionThread`] if it panics or if there can be no thread.
    pub fn start<S, E>(make: impl FnOnce() -> Result<S, E> + Send + 'static) -> Result<Self, E>
    where
        S: Session,
        E: From<Error> + Send + 'static,
    {
        let (calls, called) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        let (tell, told) = sync_channel(1);
        let run = move || match make() {
            Ok(session) => {
                let facts = [session.vocab(), session.context(), session.weight_bytes()];
                if tell.send(Ok(facts)).is_ok() {
                    serve(session, &called, &answer);
                }
            }
            // Nobody but `start` listens, and it waits.
            Err(error) => drop(tell.send(Err(error))),
        };
        let thread = std::thread::Builder::new().name("rillm-session".to_owned()).spawn(run);
        let thread = thread.map_err(|e| Error::SessionThread { message: e.to_string() })?;
        let mut engine = Self {
            calls: Some(calls),
            answers,
            thread: Cell::new(Some(thread)),
            ended: OnceCell::new(),
            memory: Cell::default(),
            vocab: 0,
            context: 0,
            weight_bytes: 0,
        };
        [engine.vocab, engine.context, engine.weight_bytes] = match told.recv() {
            Ok(made) => made?,
            Err(_) => return Err(engine.over().into()),
        };
        Ok(engine)
    }

    /// Why there is no answer: the thread has ended or is about to.
    fn over(&self) -> Error {
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            // It is set once: there was one thread.
            let _ = self.ended.set(message(&*panic));
        }
        let message = self.ended.get().map_or("it ended", String::as_str).to_owned();
        Error::SessionThread { message }
    }

    fn call(&self, call: Call, memory: Memory) -> (Result<usize>, Memory) {
        let sent = self.calls.as_ref().is_some_and(|calls| calls.send((call, memory)).is_ok());
        match self.answers.recv() {
            Ok(answer) if sent => answer,
            _ => (Err(self.over()), Memory::default()),
        }
    }

    /// A call that takes and gives numbers.
    fn ask(&self, call: Call) -> Result<usize> {
        let (answer, memory) = self.call(call, self.memory.take());
        self.memory.set(memory);
        answer
    }
}

impl Session for EngineSession {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn context(&self) -> usize {
        self.context
    }

    fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    fn cache_bytes(&self) -> usize {
        self.ask(Call::CacheBytes).unwrap_or(0)
    }

    /// A number of no sequence if the session's thread has ended.
    fn open(&mut self) -> usize {
        self.ask(Call::Open).unwrap_or(usize::MAX)
    }

    fn close(&mut self, sequence: usize) {
        // There is nothing to close where the thread has ended.
        let _ = self.ask(Call::Close(sequence));
    }

    fn len(&self, sequence: usize) -> usize {
        self.ask(Call::Len(sequence)).unwrap_or(0)
    }

    fn common_prefix(&self, sequence: usize, tokens: &[u32]) -> usize {
        let mut memory = self.memory.take();
        memory.tokens.clear();
        memory.tokens.extend_from_slice(tokens);
        self.memory.set(memory);
        self.ask(Call::CommonPrefix(sequence)).unwrap_or(0)
    }

    fn truncate(&mut self, sequence: usize, len: usize) -> Result<()> {
        self.ask(Call::Truncate(sequence, len)).map(drop)
    }

    fn step(&mut self, work: &[Work<'_>], logits: &mut Vec<f32>) -> Result<()> {
        let memory = self.memory.get_mut();
        memory.set(work);
        // The caller's memory goes to the thread and back: nothing is copied.
        std::mem::swap(&mut memory.logits, logits);
        let answer = self.ask(Call::Step);
        std::mem::swap(&mut self.memory.get_mut().logits, logits);
        answer.map(drop)
    }

    fn step_picking(&mut self, work: &[Work<'_>], tokens: &mut Vec<u32>) -> Result<()> {
        let memory = self.memory.get_mut();
        memory.set(work);
        std::mem::swap(&mut memory.picked, tokens);
        let answer = self.ask(Call::StepPicking);
        std::mem::swap(&mut self.memory.get_mut().picked, tokens);
        answer.map(drop)
    }
}

impl Drop for EngineSession {
    fn drop(&mut self) {
        self.calls = None;
        if let Some(thread) = self.thread.take() {
            // Whoever drops a session that panics meanwhile has no use for the news.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for EngineSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EngineSession")
    }
}
