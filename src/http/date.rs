//! The value of the Date field.

use std::time::{Duration, UNIX_EPOCH};

/// The last second httpdate can format: the end of the year 9999, in seconds since 1970.
const SECONDS_MAX: u64 = 253_402_300_799;

/// The IMF-fixdate (RFC 9110 section 5.6.7) of a time in seconds since 1970. A caller keeps the
/// result for as long as the second lasts.
#[must_use]
pub fn imf_fixdate(unix_seconds: u64) -> [u8; 29] {
    // A clock beyond the year 9999 is broken; the date is then as late as can be written.
    let time = UNIX_EPOCH + Duration::from_secs(unix_seconds.min(SECONDS_MAX));
    let text = httpdate::fmt_http_date(time);
    let mut date = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    if text.len() == date.len() {
        date.copy_from_slice(text.as_bytes());
    }
    date
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn imf_fixdate_has_the_fixed_form_at_both_ends_of_time() {
        assert_eq!(&imf_fixdate(0), b"Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(&imf_fixdate(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(&imf_fixdate(u64::MAX), b"Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
