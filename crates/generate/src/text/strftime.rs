//! Dates of chat templates: C's `strftime` over UTC in the C locale; not a calendar library.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment of the proleptic Gregorian calendar, in UTC.
struct Civil {
    year: i64,
    /// 1 to 12.
    month: i64,
    /// 1 to 31.
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    micros: i64,
    /// 0 is Sunday.
    weekday: i64,
    /// 1 to 366.
    yearday: i64,
    /// Seconds since 1970.
    epoch: i64,
}

impl Civil {
    fn new(time: SystemTime) -> Self {
        let micros = match time.duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_micros() as i128,
            Err(before) => -(before.duration().as_micros() as i128),
        };
        let epoch = micros.div_euclid(1_000_000) as i64;
        let (days, second) = (epoch.div_euclid(86_400), epoch.rem_euclid(86_400));
        let (year, month, day) = civil_from_days(days);
        Self {
            year,
            month,
            day,
            hour: second / 3600,
            minute: second / 60 % 60,
            second: second % 60,
            micros: micros.rem_euclid(1_000_000) as i64,
            weekday: (days + 4).rem_euclid(7),
            yearday: days - days_from_civil(year, 1, 1) + 1,
            epoch,
        }
    }

    fn hour12(&self) -> i64 {
        (self.hour + 11) % 12 + 1
    }

    /// Week of the year, 0 to 53, of weeks that begin on `first` (0 is Sunday).
    fn week(&self, first: i64) -> i64 {
        (self.yearday + 6 - (self.weekday - first).rem_euclid(7)) / 7
    }

    /// ISO 8601 year and week.
    fn iso_week(&self) -> (i64, i64) {
        let week = (self.yearday - (self.weekday + 6) % 7 + 9) / 7;
        if week < 1 {
            (self.year - 1, iso_weeks(self.year - 1))
        } else if week > iso_weeks(self.year) {
            (self.year + 1, 1)
        } else {
            (self.year, week)
        }
    }
}

/// Days since 1970-01-01, for years that begin in March so that the leap day comes last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let month = (march + 2) % 12 + 1;
    (era * 400 + year + i64::from(month <= 2), month, of_year - (153 * march + 2) / 5 + 1)
}

/// A year has 53 ISO weeks if it begins on a Thursday, or is a leap year that begins on a Wednesday.
fn iso_weeks(year: i64) -> i64 {
    let first = (days_from_civil(year, 1, 1) + 4).rem_euclid(7);
    let leap = days_from_civil(year, 3, 1) - days_from_civil(year, 2, 1) == 29;
    if first == 4 || (leap && first == 3) { 53 } else { 52 }
}

/// `time` (as UTC) in `format`, with C's conversions and glibc's `-`, `_`, `0` and `^` flags.
/// A conversion that C doesn't know is copied.
pub(super) fn strftime(time: SystemTime, format: &str) -> String {
    let civil = Civil::new(time);
    let mut out = String::new();
    expand(&civil, format, &mut out);
    out
}

fn expand(civil: &Civil, format: &str, out: &mut String) {
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let rest = chars.as_str();
        let (flag, code) = match chars.next() {
            Some(flag @ ('-' | '_' | '0' | '^')) => (Some(flag), chars.next()),
            code => (None, code),
        };
        let Some(code) = code else {
            out.push('%');
            out.push_str(rest);
            return;
        };
        if !conversion(civil, code, flag, out) {
            out.push('%');
            out.extend(flag);
            out.push(code);
        }
    }
}

/// Writes one conversion; `false` if there is none of that letter.
fn conversion(civil: &Civil, code: char, flag: Option<char>, out: &mut String) -> bool {
    if let Some((value, width, fill)) = number(civil, code) {
        let fill = match flag {
            Some('-') => "",
            Some('_') => " ",
            Some('0') => "0",
            _ => fill,
        };
        out.push_str(&match fill {
            "0" => format!("{value:0width$}"),
            " " => format!("{value:width$}"),
            _ => value.to_string(),
        });
        return true;
    }
    if let Some(name) = name(civil, code) {
        if flag == Some('^') {
            out.push_str(&name.to_uppercase())
        } else {
            out.push_str(name)
        }
        return true;
    }
    let format = match code {
        'c' => "%a %b %e %H:%M:%S %Y",
        'D' | 'x' => "%m/%d/%y",
        'F' => "%Y-%m-%d",
        'R' => "%H:%M",
        'r' => "%I:%M:%S %p",
        'T' | 'X' => "%H:%M:%S",
        'n' => "\n",
        't' => "\t",
        '%' => {
            out.push('%');
            return true;
        }
        _ => return false,
    };
    expand(civil, format, out);
    true
}

/// Value, width and fill of a numeric conversion.
fn number(civil: &Civil, code: char) -> Option<(i64, usize, &'static str)> {
    Some(match code {
        'Y' => (civil.year, 1, "0"),
        'C' => (civil.year.div_euclid(100), 2, "0"),
        'y' => (civil.year.rem_euclid(100), 2, "0"),
        'm' => (civil.month, 2, "0"),
        'd' => (civil.day, 2, "0"),
        'e' => (civil.day, 2, " "),
        'j' => (civil.yearday, 3, "0"),
        'H' => (civil.hour, 2, "0"),
        'k' => (civil.hour, 2, " "),
        'I' => (civil.hour12(), 2, "0"),
        'l' => (civil.hour12(), 2, " "),
        'M' => (civil.minute, 2, "0"),
        'S' => (civil.second, 2, "0"),
        'f' => (civil.micros, 6, "0"),
        's' => (civil.epoch, 1, "0"),
        'u' => ((civil.weekday + 6) % 7 + 1, 1, "0"),
        'w' => (civil.weekday, 1, "0"),
        'U' => (civil.week(0), 2, "0"),
        'W' => (civil.week(1), 2, "0"),
        'V' => (civil.iso_week().1, 2, "0"),
        'G' => (civil.iso_week().0, 1, "0"),
        'g' => (civil.iso_week().0.rem_euclid(100), 2, "0"),
        _ => return None,
    })
}

fn name(civil: &Civil, code: char) -> Option<&'static str> {
    let day = DAYS.get(civil.weekday as usize).copied().unwrap_or_default();
    let month = MONTHS.get((civil.month - 1) as usize).copied().unwrap_or_default();
    Some(match code {
        'A' => day,
        'a' => &day[..3],
        'B' => month,
        'b' | 'h' => &month[..3],
        'p' => ["AM", "PM"][usize::from(civil.hour >= 12)],
        'P' => ["am", "pm"][usize::from(civil.hour >= 12)],
        // What Python gives for a time without a zone, which is what templates see.
        'z' | 'Z' => "",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: i64) -> SystemTime {
        let span = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 { UNIX_EPOCH - span } else { UNIX_EPOCH + span }
    }

    /// Expected strings are those of Python's `datetime.fromtimestamp(t, UTC).replace(tzinfo=None).strftime`.
    #[test]
    fn agrees_with_python() {
        let format =
            "%Y-%m-%d %H:%M:%S %a %A %b %B %j %U %W %V %G %u %w %I %p %y %C %e %D %F %T %R|%-d %-m %-I|%c%%";
        for (seconds, want) in [
            (
                0,
                "1970-01-01 00:00:00 Thu Thursday Jan January 001 00 00 01 1970 4 4 12 AM 70 19  1 01/01/70 1970-01-01 00:00:00 00:00|1 1 12|Thu Jan  1 00:00:00 1970%",
            ),
            (
                1_709_210_096,
                "2024-02-29 12:34:56 Thu Thursday Feb February 060 08 09 09 2024 4 4 12 PM 24 20 29 02/29/24 2024-02-29 12:34:56 12:34|29 2 12|Thu Feb 29 12:34:56 2024%",
            ),
            (
                1_735_689_599,
                "2024-12-31 23:59:59 Tue Tuesday Dec December 366 52 53 01 2025 2 2 11 PM 24 20 31 12/31/24 2024-12-31 23:59:59 23:59|31 12 11|Tue Dec 31 23:59:59 2024%",
            ),
            (
                -86_400,
                "1969-12-31 00:00:00 Wed Wednesday Dec December 365 52 52 01 1970 3 3 12 AM 69 19 31 12/31/69 1969-12-31 00:00:00 00:00|31 12 12|Wed Dec 31 00:00:00 1969%",
            ),
        ] {
            assert_eq!(strftime(at(seconds), format), want);
        }
    }

    #[test]
    fn copies_what_it_does_not_know() {
        assert_eq!(strftime(at(0), "%Q %-Q 100%"), "%Q %-Q 100%");
        assert_eq!(strftime(at(0), "%-"), "%-");
    }
}
