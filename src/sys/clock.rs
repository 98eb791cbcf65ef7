//! Clocks: the monotonic one decides, the wall clock is for `Date` and log lines only.

use std::mem::MaybeUninit;
use std::sync::Once;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds on the monotonic clock, which all processes of the machine share. Source:
/// clock_gettime(2); answered without entering the kernel on the usual clock sources.
#[must_use]
pub fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The monotonic clock starts at zero, so neither part is negative.
    now.tv_sec.unsigned_abs() * 1_000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

#[cfg(any(test, feature = "simulation"))]
thread_local! {
    static SIMULATED_MS: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

/// From now on the monotonic clock says `now_ms` to the calling thread, but for [`monotonic_ms`]; `None` gives the real
/// clock back.
/// A simulation's driver has a clock of its own, with which the deadlines' other half must agree.
#[cfg(any(test, feature = "simulation"))]
pub fn simulate(now_ms: Option<u64>) {
    SIMULATED_MS.set(now_ms);
}

/// As [`monotonic_ms`], as of the last timer tick (4 ms or less ago): a few nanoseconds to read. For
/// deadlines, not for measuring.
#[must_use]
pub fn monotonic_coarse_ms() -> u64 {
    #[cfg(any(test, feature = "simulation"))]
    if let Some(now_ms) = SIMULATED_MS.get() {
        return now_ms;
    }
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec.unsigned_abs() * 1_000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// Nanoseconds on the monotonic clock.
#[must_use]
pub fn monotonic_ns() -> u64 {
    #[cfg(any(test, feature = "simulation"))]
    if let Some(now_ms) = SIMULATED_MS.get() {
        return now_ms * 1_000_000;
    }
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Seconds since 1970 as of the last timer tick, for the `Date` of responses. It is libc's call, as all that read
/// the wall clock are: the fault tests put another one in its place, to see what a clock that jumps does.
#[must_use]
pub fn unix_seconds() -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: `time` is a valid place for a timespec. The call fails only for a clock that does not exist.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, time.as_mut_ptr()) };
    // SAFETY: zeroes are a timespec, and so is what the call has written.
    unsafe { time.assume_init() }.tv_sec.unsigned_abs()
}

/// A moment in the machine's time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTime {
    /// Year, such as 2026.
    pub year: i32,
    /// Month, 1 to 12.
    pub month: u32,
    /// Day of the month, 1 to 31.
    pub day: u32,
    /// Hour, 0 to 23.
    pub hour: u32,
    /// Minute, 0 to 59.
    pub minute: u32,
    /// Second, 0 to 60.
    pub second: u32,
    /// Minutes east of UTC.
    pub offset_minutes: i32,
}

/// Seconds since 1970-01-01 00:00:00 UTC. A clock set before that gives 0.
#[must_use]
pub fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Nanoseconds since 1970-01-01 00:00:00 UTC. A clock set before that gives 0.
#[must_use]
pub fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// `2026-11-22T07:59:29` in UTC, `unix` seconds after 1970. Source: RFC 3339, without the offset.
#[must_use]
pub fn rfc3339_utc(unix: u64) -> String {
    let (days, second) = (unix / 86_400, unix % 86_400);
    // Years of 365.2425 days that begin in March: the leap day comes last, and months follow a pattern of five.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60)
}

/// The moment `unix` seconds after 1970 in the machine's time zone.
///
/// # Source
/// localtime_r(3).
#[must_use]
pub fn local_time(unix: i64) -> LocalTime {
    unsafe extern "C" {
        fn tzset();
    }
    static ZONE: Once = Once::new();
    // localtime_r need not read TZ by itself.
    ZONE.call_once(|| {
        // SAFETY: it reads the environment and the zone's file. Nobody of ours changes the
        // environment meanwhile: `raw_env` is set through Python before threads exist.
        unsafe { tzset() }
    });
    // SAFETY: all-zero bytes are a valid `tm`: numbers, and a pointer that may be null.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both references are valid for the call, which writes `parts` and reads `unix`.
    let done = unsafe { libc::localtime_r(&raw const unix, &raw mut parts) };
    if done.is_null() {
        // The year does not fit: a clock that is off by billions of years.
        return LocalTime { year: 1970, month: 1, day: 1, hour: 0, minute: 0, second: 0, offset_minutes: 0 };
    }
    let number = |field: libc::c_int| u32::try_from(field).unwrap_or_default();
    LocalTime {
        year: parts.tm_year.saturating_add(1900),
        month: number(parts.tm_mon) + 1,
        day: number(parts.tm_mday),
        hour: number(parts.tm_hour),
        minute: number(parts.tm_min),
        second: number(parts.tm_sec),
        offset_minutes: i32::try_from(parts.tm_gmtoff / 60).unwrap_or_default(),
    }
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

impl LocalTime {
    /// `2026-11-22 07:59:29 +0000`, as in the error log.
    #[must_use]
    pub fn error_log(&self) -> String {
        format!(
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02} {}",
            self.year,
            self.month,
            self.day,
            self.hour,
            self.minute,
            self.second,
            self.offset()
        )
    }

    /// `22/Nov/2026:07:59:29 +0000`, as in the access log: the month's name is English whatever the
    /// locale, because programs read it.
    #[must_use]
    pub fn access_log(&self) -> String {
        let month = MONTHS[(self.month as usize).clamp(1, 12) - 1];
        format!(
            "{:02}/{month}/{:04}:{:02}:{:02}:{:02} {}",
            self.day,
            self.year,
            self.hour,
            self.minute,
            self.second,
            self.offset()
        )
    }

    fn offset(&self) -> String {
        let sign = if self.offset_minutes < 0 { '-' } else { '+' };
        let minutes = self.offset_minutes.unsigned_abs();
        format!("{sign}{:02}{:02}", minutes / 60, minutes % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOVEMBER: LocalTime =
        LocalTime { year: 2026, month: 11, day: 2, hour: 7, minute: 5, second: 9, offset_minutes: -210 };

    #[test]
    fn both_logs_have_their_form() {
        assert_eq!(NOVEMBER.error_log(), "2026-11-02 07:05:09 -0330");
        assert_eq!(NOVEMBER.access_log(), "02/Nov/2026:07:05:09 -0330");
        assert!(LocalTime { offset_minutes: 345, ..NOVEMBER }.error_log().ends_with("+0545"));
    }

    /// The machine's zone is not known here, but undoing the offset must give UTC in any.
    #[test]
    fn local_time_less_its_offset_is_utc() {
        let unix = 1_795_333_169; // 2026-11-22 07:39:29 UTC
        let time = local_time(unix);
        let minutes = i64::from(time.hour * 60 + time.minute) - i64::from(time.offset_minutes);
        assert_eq!(minutes.rem_euclid(24 * 60), unix.rem_euclid(86_400) / 60);
        assert_eq!(i64::from(time.second), unix % 60);
        assert_eq!((time.year, time.month), (2026, 11));
    }

    #[test]
    fn utc_knows_leap_years() {
        for (unix, text) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_709_251_199, "2024-02-29T23:59:59"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (1_795_333_169, "2026-11-22T07:39:29"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            assert_eq!(rfc3339_utc(unix), text);
        }
    }

    #[test]
    fn a_clock_beyond_all_years_gives_some_time() {
        assert_eq!(local_time(i64::MAX).year, 1970);
    }
}
