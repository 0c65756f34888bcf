//! Steady decoding calls no allocator, on any thread. A binary of its own, for its allocator counts.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rillm::Loader;
use rillm::generate::{Generator, Request};

use support::{golden, goldens, name, source, tokens};

struct Counting;

static WATCHED: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicUsize = AtomicUsize::new(0);

fn count() {
    if WATCHED.load(Ordering::Relaxed) {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call is handed on to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as in `alloc`; `ptr` came from `System`, as all memory here.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The counted steps lie between 64 and 128 tokens, where key buffers grow; the prompt is longer than those after which the
/// goldens' frequencies change.
const PROMPT: usize = 60;
const WARM_UP: usize = 10;
const STEPS: usize = 30;

/// Allocations of `STEPS` steps after `WARM_UP`.
fn allocations(loader: Loader) -> usize {
    let lm = loader.context(PROMPT + WARM_UP + STEPS).load().unwrap();
    // A table of learned positions may be shorter.
    let prompt = lm.info().context - WARM_UP - STEPS;
    let request = Request::new(tokens(prompt, lm.info().vocab, 1)).max_tokens(WARM_UP + STEPS);
    let mut generator = Generator::new(lm.session(), request).unwrap();
    // The start of a thread allocates, and small models load and decode before theirs have started.
    std::thread::sleep(std::time::Duration::from_millis(20));
    generator.by_ref().take(WARM_UP).for_each(|token| drop(token.unwrap()));
    let before = CALLS.load(Ordering::SeqCst);
    WATCHED.store(true, Ordering::SeqCst);
    let decoded = generator.by_ref().take(STEPS).filter(|token| token.is_ok()).count();
    WATCHED.store(false, Ordering::SeqCst);
    assert_eq!(decoded, STEPS);
    CALLS.load(Ordering::SeqCst) - before
}

/// One test, so that nothing else runs while allocations are counted.
#[test]
fn decoding_does_not_allocate() {
    let before = CALLS.load(Ordering::SeqCst);
    WATCHED.store(true, Ordering::SeqCst);
    drop(std::hint::black_box(vec![0u8; 100]));
    WATCHED.store(false, Ordering::SeqCst);
    assert_eq!(CALLS.load(Ordering::SeqCst) - before, 1, "the allocator counts");

    let mut wrong = Vec::new();
    for model in ["llama", "mlx-llama-4bit-g64", "gguf-llama-q8_0"] {
        for threads in [1, 2] {
            let loader = || Loader::new(source(&golden(model))).threads(threads);
            for (precision, loader) in [("fast", loader()), ("exact", loader().exact())] {
                let n = allocations(loader);
                if n > 0 {
                    wrong.push(format!("{model}, {threads} threads, {precision}: {n}"));
                }
            }
        }
    }
    for folder in goldens() {
        // Frequencies that change with every token make every token a prefill.
        if name(&folder).contains("rope-dynamic") {
            continue;
        }
        // Its streams are mixed by numbers that the host computes for each row.
        if name(&folder).starts_with("gemma3n") {
            continue;
        }
        let n = allocations(Loader::new(source(&folder)).threads(2));
        if n > 0 {
            wrong.push(format!("{}: {n}", name(&folder)));
        }
    }
    assert!(wrong.is_empty(), "allocations in {STEPS} steps:\n{}", wrong.join("\n"));
}
