//! Text of one request, a piece at a time: tokens through a detokenizer and past the stop strings.

use crate::{Detokenizer, FinishReason, Generator, Result, Session, StopStrings, Token};

/// What one token brought.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Text that is now certain: often a word, empty while a character or a stop string may still be in the making.
    pub text: String,
    /// The token; `None` for text that was held back until the end.
    pub token: Option<Token>,
}

/// Iterates over the text that continues a prompt. All pieces together are the answer.
pub struct TextGenerator<S: Session> {
    tokens: Generator<S>,
    detokenizer: Detokenizer,
    stop: StopStrings,
    over: bool,
}

impl<S: Session> TextGenerator<S> {
    /// The text of `tokens`, up to the first of the `stop` strings.
    pub fn new(tokens: Generator<S>, detokenizer: Detokenizer, stop: StopStrings) -> Self {
        Self { tokens, detokenizer, stop, over: false }
    }

    /// The tokens behind the text.
    pub fn tokens(&self) -> &Generator<S> {
        &self.tokens
    }

    fn token(&mut self, token: Token) -> Result<Piece> {
        let mut text = String::new();
        let piece = self.detokenizer.push(token.id)?;
        if self.stop.feed(piece, &mut text).is_some() {
            self.tokens.finish(FinishReason::StopString);
        }
        Ok(Piece { text, token: Some(token) })
    }

    /// What was held back, if it is text.
    fn rest(&mut self) -> Result<Option<Piece>> {
        let mut text = String::new();
        if self.tokens.finish_reason() != Some(FinishReason::StopString) {
            let piece = self.detokenizer.finish()?;
            if self.stop.feed(piece, &mut text).is_none() {
                self.stop.finish(&mut text);
            }
        }
        Ok((!text.is_empty()).then_some(Piece { text, token: None }))
    }
}

impl<S: Session> Iterator for TextGenerator<S> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.tokens.next() {
            Some(Ok(token)) => Some(self.token(token)),
            Some(Err(error)) => {
                self.over = true;
                Some(Err(error))
            }
            None if self.over => None,
            None => {
                self.over = true;
                self.rest().transpose()
            }
        }
    }
}
