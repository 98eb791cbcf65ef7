//! The connections of one worker, by slot. A token of an earlier user of a slot finds nothing.

use crate::ring::Token;

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Values by token.
pub(super) struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Table<T> {
    pub(super) const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    /// Stores what `make` builds, which may keep the token.
    pub(super) fn insert(&mut self, make: impl FnOnce(Token) -> T) -> Token {
        // Past 2^32 slots the descriptor limit has long ended the process's appetite.
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, value: None });
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let entry = &mut self.slots[slot as usize];
        let token = Token { slot, generation: entry.generation };
        entry.value = Some(make(token));
        token
    }

    pub(super) fn get(&mut self, token: Token) -> Option<&mut T> {
        let entry = self.slots.get_mut(token.slot as usize)?;
        if entry.generation == token.generation { entry.value.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<T> {
        let entry = self.slots.get_mut(token.slot as usize)?;
        if entry.generation != token.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = token.next().generation;
        self.free.push(token.slot);
        Some(value)
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The tokens in use, for the rare walks over all connections.
    pub(super) fn tokens(&self) -> Vec<Token> {
        self.slots
            .iter()
            .zip(0_u32..)
            .filter(|(entry, _)| entry.value.is_some())
            .map(|(entry, slot)| Token { slot, generation: entry.generation })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_an_earlier_user_finds_nothing() {
        let mut table = Table::new();
        let first = table.insert(|_| "first");
        assert_eq!(table.remove(first), Some("first"));
        let second = table.insert(|_| "second");
        assert_eq!(second.slot, first.slot, "slots are used again");
        assert_eq!(table.get(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get(second), Some(&mut "second"));
        assert_eq!(table.len(), 1);
        assert_eq!(table.tokens(), [second]);
    }

    #[test]
    fn generations_wrap_within_their_bits() {
        let last = Token { slot: 7, generation: (1 << Token::GENERATION_BITS) - 1 };
        assert_eq!(last.next(), Token { slot: 7, generation: 0 });
    }
}
