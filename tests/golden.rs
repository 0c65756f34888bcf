//! Every checkpoint of `tests/golden` against the logits and greedy tokens of its reference.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use support::{
    TOLERANCE, distance, exact, goldens, greedy, greedy_reference, name, prompt, reference_logits, score,
};

#[test]
fn logits_and_tokens_are_those_of_the_references() {
    let folders = goldens();
    assert!(folders.len() >= 100, "only {} goldens", folders.len());
    let mut wrong = Vec::new();
    for folder in &folders {
        let name = name(folder);
        let (ids, logits, tokens) = (prompt(folder), reference_logits(folder), greedy_reference(folder));
        let Ok(lm) = std::panic::catch_unwind(|| exact(folder, 2)) else {
            wrong.push(format!("{name}: does not load"));
            continue;
        };
        let mut session = lm.session();
        let whole = score(&mut session, &ids, usize::MAX);
        for chunk in [usize::MAX, 7, 1] {
            let got = score(&mut session, &ids, chunk);
            let d = distance(&got, &logits);
            if d.is_nan() || d > TOLERANCE {
                wrong.push(format!("{name}: chunk {chunk}: {d} standard deviations"));
            }
            if got != whole {
                wrong.push(format!("{name}: chunk {chunk}: other bits than in one chunk"));
            }
        }
        let got = greedy(&mut session, &ids, tokens.len());
        if got != tokens {
            wrong.push(format!("{name}: greedy {got:?}, wanted {tokens:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} failures of {}:\n{}", wrong.len(), folders.len(), wrong.join("\n"));
}
