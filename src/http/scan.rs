//! Classes of bytes: by table, and eight at a time where every request and every answer pays for it. No SIMD:
//! names and hosts are short, and httparse has already done the long scans of a request with it.

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
    if bytes.len() >= 8 && !any_word(bytes, |word| plain(word) != each(0x80)) {
        return true;
    }
    !bytes.is_empty() && bytes.iter().all(|&byte| is_token_byte(byte))
}

/// Whether `name`, a token, is `known` in any case. `known` is in lower case, of letters and hyphens.
pub(super) fn is_name<const N: usize>(name: &[u8], known: &[u8; N]) -> bool {
    // A letter differs from its other case by one bit, and no other byte of a token becomes a letter or a hyphen by it.
    // Of a fixed length, so that the compiler compares eight bytes at a time.
    name.first_chunk::<N>().is_some_and(|bytes| {
        name.len() == N
            && bytes.iter().zip(known).fold(true, |same, (byte, known)| same & (byte | 0x20 == *known))
    })
}

/// How many bytes at the beginning could be a `reg-name` or an IPv4 address (RFC 3986 section 3.2.2).
pub(super) fn reg_name_len(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Some((word, after)) = rest.split_first_chunk()
        && plain(u64::from_ne_bytes(*word)) == each(0x80)
    {
        rest = after;
    }
    while let [first, after @ ..] = rest
        && CLASSES[usize::from(*first)] & REG_NAME != 0
    {
        rest = after;
    }
    bytes.len() - rest.len()
}

/// Whether a request target is nothing but a path: it has neither `?` nor `#`, and no bytes outside ASCII.
pub(super) fn is_plain_target(target: &[u8]) -> bool {
    if target.len() < 8 {
        return target.iter().all(|byte| byte.is_ascii() && !matches!(byte, b'?' | b'#'));
    }
    !any_word(target, |word| {
        word & each(0x80) != 0 || any_zero(word ^ each(b'?')) || any_zero(word ^ each(b'#'))
    })
}

/// Whether `byte` may stand in a field value: HTAB, SP, VCHAR, obs-text (RFC 9110 section 5.5).
pub(super) fn is_text_byte(byte: u8) -> bool {
    (byte >= 0x20 || byte == b'\t') && byte != 0x7f
}

/// Whether every byte may stand in a field value or in a reason phrase.
pub(super) fn is_text(bytes: &[u8]) -> bool {
    if bytes.len() >= 8 && !any_word(bytes, |word| any_zero(word ^ each(0x7f)) || any_below(word, 0x20)) {
        return true;
    }
    bytes.iter().all(|&byte| is_text_byte(byte))
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

/// Whether `name` has an underscore. This runs for every field of every request, and a call of memchr costs more
/// than a name is long.
pub(super) fn has_underscore(name: &[u8]) -> bool {
    if name.len() < 8 {
        // Byte by byte: `contains` is made for more than that.
        return !name.iter().all(|&byte| byte != b'_');
    }
    any_word(name, |word| any_zero(word ^ each(b'_')))
}

/// Whether `is` holds for one of the words of eight bytes, of which there is at least one. The last one overlaps the
/// one before it.
fn any_word(bytes: &[u8], is: impl Fn(u64) -> bool) -> bool {
    let (whole, rest) = bytes.as_chunks();
    for word in whole {
        if is(u64::from_ne_bytes(*word)) {
            return true;
        }
    }
    !rest.is_empty() && bytes.last_chunk().is_some_and(|word| is(u64::from_ne_bytes(*word)))
}

/// A word that has `byte` eight times.
const fn each(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Whether a byte of `word` is below `limit`, which is at most 128. Only whether there is one is asked, not which: a
/// borrow can only mark a byte above one that is really below.
const fn any_below(word: u64, limit: u8) -> bool {
    word.wrapping_sub(each(limit)) & !word & each(0x80) != 0
}

const fn any_zero(word: u64) -> bool {
    any_below(word, 1)
}

/// Marks the letters, digits, hyphens and dots in a word, each with its highest bit: what nearly all names, of fields
/// and of hosts, are made of.
const fn plain(word: u64) -> u64 {
    // Of seven bits each, none of these sums carries into the next byte.
    const fn from_to(word: u64, first: u8, last: u8) -> u64 {
        (word + each(0x80 - first)) & !(word + each(0x7f - last))
    }
    let low = word & each(0x7f);
    let found = from_to(low | each(0x20), b'a', b'z') | from_to(low, b'0', b'9') | from_to(low, b'-', b'.');
    found & !word & each(0x80)
}

/// The members of a comma-separated list, trimmed, empty ones included (RFC 9110 section 5.6.1).
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim)
}

/// A decimal number of digits only (`1*DIGIT`); `None` for anything else and above `u64::MAX`.
pub(super) fn decimal(bytes: &[u8]) -> Option<u64> {
    /// Digits of which every number fits.
    const SAFE_DIGITS: usize = 19;
    let (safe, more) = bytes.split_at_checked(SAFE_DIGITS).unwrap_or((bytes, &[]));
    let mut number = 0;
    for byte in safe {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number * 10 + u64::from(digit);
    }
    let number = more.iter().try_fold(number, |number, &byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 { None } else { number.checked_mul(10)?.checked_add(u64::from(digit)) }
    });
    number.filter(|_| !bytes.is_empty())
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

    /// Every byte that a token may have, at every place of a name.
    #[test]
    fn a_name_is_known_in_any_case_and_no_other_is() {
        let known = b"te-transfer";
        assert!(
            is_name(b"TE-Transfer", known)
                && !is_name(b"te-transfe", known)
                && !is_name(b"te-transfers", known)
        );
        for at in 0..known.len() {
            for byte in (0..=u8::MAX).filter(|byte| is_token_byte(*byte)) {
                let mut name = *known;
                name[at] = byte;
                assert_eq!(
                    is_name(&name, known),
                    name.eq_ignore_ascii_case(known),
                    "{}",
                    name.escape_ascii()
                );
            }
        }
    }

    #[test]
    fn decimal_takes_digits_only() {
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(decimal(b"9999999999999999999"), Some(9_999_999_999_999_999_999));
        assert_eq!(decimal(b"000000000000000000000000000080"), Some(80));
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

        /// The same for names and values, of which one byte decides wherever it stands.
        #[test]
        fn a_byte_counts_the_same_wherever_it_stands(mut bytes in "[0-9A-Za-z-]{1,40}".prop_map(String::into_bytes),
                                                     at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            prop_assert!(is_token(&bytes) && is_text(&bytes));
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let shown = bytes.escape_ascii();
            prop_assert_eq!(is_token(&bytes), is_token_byte(byte), "{}", shown);
            prop_assert_eq!(is_text(&bytes), is_text_byte(byte), "{}", shown);
            let in_host = CLASSES[usize::from(byte)] & REG_NAME != 0;
            prop_assert_eq!(reg_name_len(&bytes), if in_host { bytes.len() } else { at }, "{}", shown);
            let is_path = byte < 0x80 && byte != b'?' && byte != b'#';
            prop_assert_eq!(is_plain_target(&bytes), is_path, "{}", shown);
        }
    }
}
