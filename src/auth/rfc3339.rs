//! Times as backends write them: RFC 3339, with any offset.

use std::time::{Duration, SystemTime};

/// The longest text, in bytes: with any sensible fraction of a second.
const TEXT_BYTES_MAX: usize = 64;

/// Reads `2026-01-31T12:00:00.123+02:00`. A time before 1970 is 1970: it is over, whichever it was. None: it isn't one.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    let bytes = text.as_bytes();
    if !(20..=TEXT_BYTES_MAX).contains(&bytes.len()) {
        return None;
    }
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if separators.iter().any(|(at, byte)| bytes[*at] != *byte) || !matches!(bytes[10], b'T' | b't' | b' ') {
        return None;
    }
    let [year, month, day] = [number(&bytes[..4])?, number(&bytes[5..7])?, number(&bytes[8..10])?];
    let [hour, minute, second] = [number(&bytes[11..13])?, number(&bytes[14..16])?, number(&bytes[17..19])?];
    // 60: a leap second, which Unix time doesn't have.
    if !(1..=days_of(year, month)?).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (nanos, rest) = fraction(&bytes[19..])?;
    let time = days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second.min(59) - offset(rest)?;
    match u64::try_from(time) {
        Ok(seconds) => SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)),
        Err(_) => Some(SystemTime::UNIX_EPOCH),
    }
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0')))
}

fn days_of(year: i64, month: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => Some(if leap { 29 } else { 28 }),
        4 | 6 | 9 | 11 => Some(30),
        1..=12 => Some(31),
        _ => None,
    }
}

/// Of the Gregorian calendar; the year begins in March, so that the leap day is its last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let before_year = year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    before_year + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// The nanoseconds of a fraction, where there is one, and what follows it.
fn fraction(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let Some(digits) = bytes.strip_prefix(b".") else { return Some((0, bytes)) };
    let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if count == 0 {
        return None;
    }
    let nanos =
        (0..9).fold(0, |nanos, place| nanos * 10 + if place < count { u32::from(digits[place] - b'0') } else { 0 });
    Some((nanos, &digits[count..]))
}

/// Seconds east of Greenwich.
fn offset(bytes: &[u8]) -> Option<i64> {
    match bytes {
        b"Z" | b"z" => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (number(&[*h1, *h2])?, number(&[*m1, *m2])?);
            let seconds = hours * 3_600 + minutes * 60;
            (hours <= 23 && minutes <= 59).then_some(if *sign == b'+' { seconds } else { -seconds })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn since_1970(text: &str) -> Option<Duration> {
        parse(text).map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap())
    }

    #[test]
    fn times_of_any_offset_are_read() {
        for (text, seconds, nanos) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2000-02-29T12:34:56Z", 951_827_696, 0),
            ("2000-03-01T00:00:00z", 951_868_800, 0),
            ("2026-11-25T14:00:00+02:00", 1_795_608_000, 0),
            ("2026-11-25 10:30:00-01:30", 1_795_608_000, 0),
            ("2026-11-25T12:00:00.25+00:00", 1_795_608_000, 250_000_000),
            ("2026-11-25t12:00:00.123456789123Z", 1_795_608_000, 123_456_789),
            ("2016-12-31T23:59:60Z", 1_483_228_799, 0),
            ("9999-12-31T23:59:59Z", 253_402_300_799, 0),
            ("0001-01-01T00:00:00Z", 0, 0),
            ("1970-01-01T00:00:00+01:00", 0, 0),
        ] {
            assert_eq!(since_1970(text), Some(Duration::new(seconds, nanos)), "{text}");
        }
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let mut expected = days_since_1970(1970, 1, 1);
        assert_eq!(expected, 0);
        for year in 1970..2371 {
            for month in 1..=12 {
                for day in 1..=days_of(year, month).unwrap() {
                    assert_eq!(days_since_1970(year, month, day), expected, "{year}-{month}-{day}");
                    expected += 1;
                }
            }
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "2026-11-25",
            "2026-11-25T12:00:00",
            "2026-11-25T12:00Z",
            "2026-11-25T12:00:00.Z",
            "2026-11-25T12:00:00+2:00",
            "2026-11-25T12:00:00+0200",
            "2026-11-25T12:00:00+24:00",
            "2026-13-01T12:00:00Z",
            "2026-00-01T12:00:00Z",
            "2026-02-29T12:00:00Z",
            "2026-11-31T12:00:00Z",
            "2026-11-25T24:00:00Z",
            "2026-11-25T12:60:00Z",
            "2026-11-25T12:00:61Z",
            "2026-11-25X12:00:00Z",
            "+026-11-25T12:00:00Z",
            "2026-11-25T12:00:00ZZ",
            "2026-11-25T12:00:0éZ",
            "1795608000",
            "17956080000000000000000000",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
