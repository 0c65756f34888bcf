//! Decoding that runs ahead: while the host reads a token, the device already computes what follows it.
//!
//! Only where the backend picks on the device, the likeliest or a draw. What one sequence said last is the input of its
//! next pass without having been read, so the device never waits for the host. A pass that runs ahead is a guess about
//! what will be asked next; a wrong one is taken back, and nobody sees that it was.

use rillm_nn::Error as ModelError;
use rillm_tensor_core::{Backend, Ids};

use super::LocalSession;
use crate::{Result, Session, Want, Work};

/// A pass under way: its caches have one row more than the session's tokens.
#[derive(Debug)]
pub(super) struct Ahead<B: Backend> {
    /// Each sequence, the token it was fed, and what is picked after that.
    fed: Vec<(usize, u32, Want)>,
    /// What follows these, on the device.
    picked: B::Tensor,
}

impl<B: Backend> Ahead<B> {
    /// Whether `work` is this pass.
    fn is(&self, work: &[Work<'_>]) -> bool {
        let same = |(w, fed): (&Work<'_>, &(usize, u32, Want))| {
            w.sequence == fed.0 && w.tokens == [fed.1] && w.ahead == 0 && w.want == fed.2
        };
        work.len() == self.fed.len() && work.iter().zip(&self.fed).all(same)
    }
}

impl<B: Backend> LocalSession<B> {
    /// [`Session::step_picking`], but for the tokens of the session.
    pub(super) fn try_picking(&mut self, work: &[Work<'_>], tokens: &mut Vec<u32>) -> Result<()> {
        if let Some(i) = self.ahead.iter().position(|ahead| ahead.is(work)) {
            let Ahead { fed, picked } = self.ahead.swap_remove(i);
            return self.read_picked(work, picked, fed, tokens);
        }
        self.take_back(|sequence| work.iter().any(|w| w.sequence == sequence));
        self.refresh(work)?;
        let pieces = self.pieces(work);
        for part in work.chunks(pieces) {
            let Some(logits) = self.run(part)? else { continue };
            match self.pick(part.iter().map(|w| w.want), &logits)? {
                Some(picked) if pieces == work.len() => {
                    // Before what runs ahead is recorded: the device need not wait for that.
                    self.backend.submit(&[&picked]).map_err(ModelError::from)?;
                    self.read_picked(part, picked, Vec::new(), tokens)?;
                }
                Some(picked) => self.backend.read_ids(&picked, tokens).map_err(ModelError::from)?,
                None => {
                    self.read(&logits)?;
                    self.picker.pick(&mut self.part, self.model.vocab(), part, tokens)?;
                }
            }
        }
        Ok(())
    }

    /// Reads what `work` picked, once the pass that follows is under way. `fed` is memory for it.
    fn read_picked(
        &mut self,
        work: &[Work<'_>],
        picked: B::Tensor,
        mut fed: Vec<(usize, u32, Want)>,
        tokens: &mut Vec<u32>,
    ) -> Result<()> {
        let next = self.run_ahead(work, &picked);
        self.backend.read_ids(&picked, tokens).map_err(ModelError::from)?;
        if let Some(picked) = next {
            fed.clear();
            fed.extend(work.iter().zip(&*tokens).map(|(w, token)| (w.sequence, *token, w.want.next())));
            self.ahead.push(Ahead { fed, picked });
        }
        Ok(())
    }

    /// Starts the pass that feeds `picked` to the sequences of `work`, which has run but not settled. `None` if that
    /// can't be done: the next step will find the reason, if it is one.
    fn run_ahead(&mut self, work: &[Work<'_>], picked: &B::Tensor) -> Option<B::Tensor> {
        let mut longest = 0;
        for w in work {
            let sequence = self.sequence(w.sequence).ok()?;
            let len = sequence.tokens.len() + w.tokens.len() + 1;
            let same_rope = self.model.rope_set(len) == sequence.rope_set;
            let picks_one = matches!(w.want, Want::Last | Want::Draw(_));
            if len > self.context || !same_rope || w.ahead > 0 || !picks_one {
                return None;
            }
            longest = longest.max(len);
        }
        self.batch.reset(longest);
        for w in work {
            self.batch.push(w.sequence, self.len(w.sequence) + w.tokens.len(), 1);
        }
        self.rows.clear();
        self.rows.extend(0..work.len());
        let next = self.forward_ahead(work, picked);
        if !matches!(next, Ok(Some(_))) {
            work.iter().for_each(|w| self.restore(w.sequence, w.tokens.len()));
        }
        next.ok().flatten()
    }

    /// Runs `self.batch` on what was picked for `work`, without waiting. Returns what it picks.
    fn forward_ahead(&mut self, work: &[Work<'_>], picked: &B::Tensor) -> Result<Option<B::Tensor>> {
        let (be, ids) = (&self.backend, Ids::Device(picked));
        let logits = self.model.forward(be, ids, &self.batch, &mut self.caches, &self.rows)?;
        let Some(logits) = logits else { return Ok(None) };
        let next = self.pick(work.iter().map(|w| w.want.next()), &logits)?;
        if let Some(next) = &next {
            self.backend.submit(&[next]).map_err(ModelError::from)?;
        }
        Ok(next)
    }

    /// Picks on the device what `wants` say of `logits`. `None` if the backend doesn't, or if they differ in more than
    /// the draw.
    fn pick(&mut self, wants: impl Iterator<Item = Want>, logits: &B::Tensor) -> Result<Option<B::Tensor>> {
        let mut how = None;
        let mut alike = true;
        self.points.clear();
        for want in wants.filter(|want| *want != Want::Nothing) {
            let sampling = match want {
                Want::Draw(draw) => {
                    self.points.push(draw.point());
                    Some(draw.how)
                }
                _ => None,
            };
            alike &= *how.get_or_insert(sampling) == sampling;
        }
        let picked = match how {
            _ if !alike => Ok(None),
            Some(Some(how)) => self.backend.sample(logits, &how, &self.points),
            _ => self.backend.argmax(logits),
        };
        Ok(picked.map_err(ModelError::from)?)
    }

    /// Takes back the passes that ran ahead with any sequence of which `of` is true.
    pub(super) fn take_back(&mut self, of: impl Fn(usize) -> bool) {
        while let Some(i) = self.ahead.iter().position(|ahead| ahead.fed.iter().any(|fed| of(fed.0))) {
            for (sequence, ..) in self.ahead.swap_remove(i).fed {
                self.restore(sequence, 0);
            }
        }
    }
}
