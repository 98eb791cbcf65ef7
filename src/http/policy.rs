//! gunicorn's settings that decide how a request is parsed.

/// Fields a request may have at most, whatever the setting says (as gunicorn).
const FIELDS_CEILING: usize = 32_768;

/// Bytes of one field line when `limit_request_field_size` is 0 (as gunicorn's code does).
const FIELD_BYTES_DEFAULT: usize = 8190;

/// Bytes of a request line when `limit_request_line` is 0, which promises "unlimited": everything
/// that a peer makes grow has a bound.
const REQUEST_LINE_BYTES_CEILING: usize = 1024 * 1024;

/// Bytes of a whole head at most, whatever the settings multiply to. Spans are 32 bits wide.
const HEAD_BYTES_CEILING: usize = 1 << 30;

/// What happens to a field whose name has an underscore and is not one of `forwarder_headers` from
/// a trusted peer: `X_Real_User` and `X-Real-User` would be the same variable for the application.
///
/// Source: gunicorn's setting `header_map`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderMap {
    /// The field is left out.
    #[default]
    Drop,
    /// The request is answered with 400.
    Refuse,
    /// The field is kept.
    Dangerous,
}

/// How requests are parsed. The numbers are the settings as the user wrote them; where 0 or a huge
/// number has a meaning of its own, the accessors below give the number that counts.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Bytes of a request line without its CRLF (`limit_request_line`); 0 means 1 MiB.
    pub request_line_bytes_max: usize,
    /// Fields of a request (`limit_request_fields`); 0 and all above 32768 mean 32768.
    pub fields_max: usize,
    /// Bytes of a field line with its CRLF (`limit_request_field_size`); 0 means 8190.
    pub field_bytes_max: usize,
    /// Bytes of a request body (`limit_request_body`); 0 means no limit.
    pub body_bytes_max: u64,
    /// What happens to names with an underscore (`header_map`).
    pub header_map: HeaderMap,
    /// Names with an underscore that a trusted peer may send, or `*` (`forwarder_headers`).
    pub forwarder_headers: Vec<String>,
    /// Names and values by which a trusted peer says that its client came over TLS
    /// (`secure_scheme_headers`).
    pub secure_scheme_headers: Vec<(String, String)>,
    /// Field lines that go on in the next line are accepted after [`relax`](super::relax)
    /// (`permit_obsolete_folding`).
    pub permit_obsolete_folding: bool,
    /// Blanks before the colon are accepted after [`relax`](super::relax)
    /// (`strip_header_spaces`).
    pub strip_header_spaces: bool,
    /// Methods may be any token (`permit_unconventional_http_method`). Otherwise they have 3 to 20
    /// characters, no lower-case letter and no `#`.
    pub permit_unconventional_http_method: bool,
    /// Any `HTTP/digit.digit` is served (`permit_unconventional_http_version`).
    pub permit_unconventional_http_version: bool,
    /// Methods become upper-case in [`relax`](super::relax) (`casefold_http_method`).
    pub casefold_http_method: bool,
}

impl Default for Policy {
    /// gunicorn's defaults, but for the request line: RFC 9112 section 3 recommends 8000 octets at least.
    fn default() -> Self {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Self {
            request_line_bytes_max: 8190,
            fields_max: 100,
            field_bytes_max: FIELD_BYTES_DEFAULT,
            body_bytes_max: 0,
            header_map: HeaderMap::Drop,
            forwarder_headers: vec!["SCRIPT_NAME".to_owned(), "PATH_INFO".to_owned()],
            secure_scheme_headers: vec![
                pair("X-FORWARDED-PROTOCOL", "ssl"),
                pair("X-FORWARDED-PROTO", "https"),
                pair("X-FORWARDED-SSL", "on"),
            ],
            permit_obsolete_folding: false,
            strip_header_spaces: false,
            permit_unconventional_http_method: false,
            permit_unconventional_http_version: false,
            casefold_http_method: false,
        }
    }
}

impl Policy {
    /// Whether the bytes of a head have to go through [`relax`](super::relax) before they are
    /// parsed.
    #[must_use]
    pub const fn is_relaxed(&self) -> bool {
        self.permit_obsolete_folding || self.strip_header_spaces || self.casefold_http_method
    }

    /// Bytes of a request line without its CRLF.
    #[must_use]
    pub const fn line_limit(&self) -> usize {
        if self.request_line_bytes_max == 0 {
            REQUEST_LINE_BYTES_CEILING
        } else {
            self.request_line_bytes_max
        }
    }

    /// Fields of a request.
    #[must_use]
    pub const fn field_count_limit(&self) -> usize {
        if self.fields_max == 0 || self.fields_max > FIELDS_CEILING {
            FIELDS_CEILING
        } else {
            self.fields_max
        }
    }

    /// Bytes of a field line with its CRLF.
    #[must_use]
    pub const fn field_limit(&self) -> usize {
        if self.field_bytes_max == 0 { FIELD_BYTES_DEFAULT } else { self.field_bytes_max }
    }

    /// Bytes of a whole head: what a connection may have to hold before it is complete.
    #[must_use]
    pub const fn head_limit(&self) -> usize {
        let fields = self.field_count_limit().saturating_mul(self.field_limit().saturating_add(2));
        let all = fields.saturating_add(self.line_limit()).saturating_add(4);
        if all > HEAD_BYTES_CEILING { HEAD_BYTES_CEILING } else { all }
    }

    /// Whether a trusted peer may send `name`, which has an underscore.
    pub(super) fn is_forwarder_header(&self, name: &[u8]) -> bool {
        self.forwarder_headers.iter().any(|known| known == "*" || known.as_bytes().eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn zero_and_huge_limits_stay_bounds() {
        let mut policy = Policy { fields_max: 0, field_bytes_max: 0, ..Policy::default() };
        assert_eq!((policy.field_count_limit(), policy.field_limit()), (32_768, 8190));
        policy.fields_max = 32_769;
        assert_eq!(policy.field_count_limit(), 32_768);
        policy.field_bytes_max = usize::MAX;
        policy.request_line_bytes_max = usize::MAX;
        assert_eq!(policy.head_limit(), 1 << 30);
        assert_eq!(Policy::default().head_limit(), 100 * 8192 + 8190 + 4);
    }
}
