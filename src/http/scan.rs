//! Classes of bytes, by table. No SIMD: names and hosts are short, and httparse has already done
//! the long scans of a request with it.

const TOKEN: u8 = 1;
const REG_NAME: u8 = 2;

static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    const LETTERS_AND_DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut table = [0; 256];
    table = mark(table, LETTERS_AND_DIGITS, TOKEN | REG_NAME);
    // RFC 9110 section 5.6.2.
    table = mark(table, b"!#$%&'*+-.^_`|~", TOKEN);
    // RFC 3986 section 3.2.2: unreserved, sub-delims, and the percent sign of pct-encoded.
    mark(table, b"-._~%!$&'()*+,;=", REG_NAME)
}

const fn mark(mut table: [u8; 256], members: &[u8], class: u8) -> [u8; 256] {
    let mut index = 0;
    while index < members.len() {
        table[members[index] as usize] |= class;
        index += 1;
    }
    table
}

/// Whether `byte` is a `tchar` (RFC 9110 section 5.6.2).
pub(super) fn is_token_byte(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & TOKEN != 0
}

/// Whether `bytes` is a `token` (RFC 9110 section 5.6.2): one `tchar` or more.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&byte| is_token_byte(byte))
}

/// How many bytes at the beginning could be a `reg-name` or an IPv4 address (RFC 3986 section 3.2.2).
pub(super) fn reg_name_len(bytes: &[u8]) -> usize {
    let end = bytes.iter().position(|&byte| CLASSES[usize::from(byte)] & REG_NAME == 0);
    end.unwrap_or(bytes.len())
}

/// Whether `byte` may stand in a field value: HTAB, SP, VCHAR, obs-text (RFC 9110 section 5.5).
pub(super) fn is_text_byte(byte: u8) -> bool {
    (byte >= 0x20 || byte == b'\t') && byte != 0x7f
}

/// Whether every byte may stand in a field value or in a reason phrase. It never stops early, so
/// that the compiler can take many bytes at a time: wrong values are rare.
pub(super) fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |fine, &byte| fine & (((byte >= 0x20) | (byte == b'\t')) & (byte != 0x7f)))
}

/// `bytes` without the SP and HTAB around it (OWS, RFC 9110 section 5.6.3).
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// Whether `name` has an underscore. Eight bytes at a time: this runs for every field of every
/// request, and a call of memchr costs more than a name is long.
pub(super) fn has_underscore(name: &[u8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    const MARKS: u64 = u64::from_ne_bytes([b'_'; 8]);
    let mut words = name.chunks_exact(8);
    let mut found = 0;
    for word in &mut words {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        // Only whether a byte is zero matters, not which: a borrow can only mark a byte above
        // one that is really zero.
        let zero_where_mark = u64::from_ne_bytes(bytes) ^ MARKS;
        found |= zero_where_mark.wrapping_sub(ONES) & !zero_where_mark & HIGH;
    }
    found != 0 || words.remainder().contains(&b'_')
}

/// The members of a comma-separated list, trimmed, empty ones included (RFC 9110 section 5.6.1).
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim)
}

/// A decimal number of digits only (`1*DIGIT`); `None` for anything else and above `u64::MAX`.
pub(super) fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() {
        return None;
    }
    bytes.iter().try_fold(0_u64, |number, &byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 { None } else { number.checked_mul(10)?.checked_add(u64::from(digit)) }
    })
}

/// Decodes `%41`; what is not two hexadecimal digits stays as it is.
#[must_use]
pub fn percent_decode(path: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, after @ ..] = rest {
        if let (b'%', [high, low, tail @ ..]) = (first, after)
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            out.push(high << 4 | low);
            rest = tail;
        } else {
            out.push(*first);
            rest = after;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn classes_agree_with_the_grammar_on_every_byte() {
        for byte in 0..=u8::MAX {
            let letter = char::from(byte);
            let token = letter.is_ascii_alphanumeric() || (byte < 128 && "!#$%&'*+-.^_`|~".contains(letter));
            assert_eq!(is_token(&[byte]), token, "{byte:#x}");
            let reg_name =
                letter.is_ascii_alphanumeric() || (byte < 128 && "-._~%!$&'()*+,;=".contains(letter));
            assert_eq!(reg_name_len(&[byte]), usize::from(reg_name), "{byte:#x}");
            let text = byte == 9 || (32..127).contains(&byte) || byte >= 128;
            assert_eq!(is_text(&[byte]), text, "{byte:#x}");
            assert_eq!(is_text_byte(byte), text, "{byte:#x}");
        }
        assert!(!is_token(b""));
        assert!(is_text(b""));
    }

    #[test]
    fn decimal_takes_digits_only() {
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        for wrong in [&b""[..], b"18446744073709551616", b"+5", b"-0", b"0x5", b"5 ", b"5,5", b"\xb25"] {
            assert_eq!(decimal(wrong), None, "{}", wrong.escape_ascii());
        }
    }

    proptest! {
        /// The quick search and the plain one are the same function.
        #[test]
        fn underscores_are_found_wherever_they_are(name in proptest::collection::vec(
            prop_oneof![Just(b'_'), Just(b'^'), Just(b'`'), Just(b'a'), Just(b'\xdf'), any::<u8>()], 0..40)) {
            prop_assert_eq!(has_underscore(&name), name.contains(&b'_'));
        }
    }
}
