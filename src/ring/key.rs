//! The 64 bits that travel through the kernel with each operation: op:8, generation:24, slot:32.
//!
//! The generation is what makes a late answer harmless: it names one use of a slot, so an answer to
//! an earlier use is known and dropped.

use super::Token;

/// Builds the number for an operation on behalf of `token`.
pub(super) const fn pack(op: u8, token: Token) -> u64 {
    (op as u64) << 56
        | ((token.generation as u64) & ((1 << Token::GENERATION_BITS) - 1)) << 32
        | token.slot as u64
}

/// Takes a number of [`pack`] apart.
pub(super) const fn unpack(key: u64) -> (u8, Token) {
    let generation = (key >> 32) as u32 & ((1 << Token::GENERATION_BITS) - 1);
    ((key >> 56) as u8, Token { slot: key as u32, generation })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_the_round_trip_at_their_edges() {
        for (op, slot, generation) in [(0, 0, 0), (255, u32::MAX, 0xff_ffff), (1, 7, 0x80_0001)] {
            let token = Token { slot, generation };
            assert_eq!(unpack(pack(op, token)), (op, token));
        }
    }
}
