//! Many short texts in little memory. Knows nothing of files.

use std::iter::FusedIterator;

/// Texts in order, one behind the other in memory: a vocabulary is no hundred thousand allocations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    all: String,
    /// Where each ends in `all`.
    ends: Vec<usize>,
}

impl Texts {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The text at `i`, if there are more than `i`.
    pub fn get(&self, i: usize) -> Option<&str> {
        let start = i.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        self.all.get(start..*self.ends.get(i)?)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + DoubleEndedIterator + FusedIterator {
        (0..self.len()).map(|i| self.get(i).unwrap_or_default())
    }

    /// Appends a text.
    pub fn push(&mut self, text: &str) {
        self.all.push_str(text);
        self.ends.push(self.all.len());
    }
}

impl<S: AsRef<str>> FromIterator<S> for Texts {
    fn from_iter<I: IntoIterator<Item = S>>(texts: I) -> Self {
        let mut all = Self::default();
        texts.into_iter().for_each(|text| all.push(text.as_ref()));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_in_order() {
        let wanted = ["<s>", "", "▁the", ""];
        let texts: Texts = wanted.iter().collect();
        assert_eq!(texts.iter().collect::<Vec<_>>(), wanted);
        assert_eq!((texts.len(), texts.get(2), texts.get(4)), (4, Some("▁the"), None));
        assert!(Texts::default().is_empty() && Texts::default().get(0).is_none());
    }
}
