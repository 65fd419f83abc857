//! Texts and what they mean: durations, sizes, shares, addresses, levels. Pure; each error says what to write instead.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use super::mistake::{most_like, quoted};
use crate::secret::Secret;

/// Units of time, and how many milliseconds each is. Ascending.
const TIME_UNITS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)];

/// Units of size, and how many bytes each is. Ascending.
const SIZE_UNITS: [(&str, u64); 14] = [
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("KiB", 1 << 10),
    ("Ki", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("Mi", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
    ("Gi", 1 << 30),
    ("TB", 1_000_000_000_000),
    ("TiB", 1 << 40),
    ("Ti", 1 << 40),
];

/// The levels of the log, and none at all.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A whole number and a unit.
fn number_and_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// A duration between two limits, such as `30s`. `0` needs no unit.
pub(super) fn duration(text: &str, limits: &RangeInclusive<Duration>) -> Result<Duration, String> {
    let milliseconds = if text == "0" { Some(0) } else { number_and_unit(text, &TIME_UNITS) };
    let Some(milliseconds) = milliseconds else {
        return Err(format!(
            "{} is not a duration: write a whole number and one of ms, s, m, h, d, w, such as \"30s\"",
            quoted(text)
        ));
    };
    let duration = Duration::from_millis(milliseconds);
    if limits.contains(&duration) {
        return Ok(duration);
    }
    let (shortest, longest) = (duration_text(*limits.start()), duration_text(*limits.end()));
    Err(format!("{} is not between {shortest:?} and {longest:?}", quoted(text)))
}

/// The shortest text that [`duration`] reads as this duration (which it made, so whole milliseconds).
pub(super) fn duration_text(duration: Duration) -> String {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if milliseconds == 0 {
        return "0s".to_owned();
    }
    // Weeks are read, but days say the same and are read by everyone.
    let divides = |(unit, factor): &&(&str, u64)| *unit != "w" && milliseconds.is_multiple_of(*factor);
    TIME_UNITS
        .iter()
        .rev()
        .find(divides)
        .map_or_else(|| format!("{milliseconds}ms"), |(unit, factor)| format!("{}{unit}", milliseconds / factor))
}

/// Hours of the day, such as `22-6`: from the first until the second.
pub(super) fn hours(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once('-').and_then(|(from, until)| Some((from.parse().ok()?, until.parse().ok()?)));
    match parsed {
        Some((from, until)) if from < 24 && until <= 24 && from != until => Ok((from, until)),
        _ => Err(format!("{} is not a span of hours: write two of 0 to 24, such as \"22-6\"", quoted(text))),
    }
}

/// A size in bytes, such as `50GiB`. The unit is needed: a bare number means different things to different people.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    number_and_unit(text, &SIZE_UNITS).ok_or_else(|| {
        format!("{} is not a size: write a whole number and a unit, such as \"50GiB\" or \"12345B\"", quoted(text))
    })
}

/// The shortest text that [`bytes()`] reads as this size, in powers of 1024.
pub(super) fn bytes_text(bytes: u64) -> String {
    SIZE_UNITS
        .iter()
        .rev()
        .filter(|(unit, _)| unit.ends_with("iB"))
        .find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor))
        .map_or_else(|| format!("{bytes}B"), |(unit, factor)| format!("{}{unit}", bytes / factor))
}

/// A share between two limits, such as `80%`; `None` if the text is not meant as one.
pub(super) fn percent(text: &str, limits: &RangeInclusive<u8>) -> Option<Result<u8, String>> {
    let number = text.strip_suffix('%')?.trim_end();
    let share = number.parse().ok().filter(|share| limits.contains(share));
    let problem = || format!("{} is not a whole share between {}% and {}%", quoted(text), limits.start(), limits.end());
    Some(share.ok_or_else(problem))
}

/// `true` or `false` as environments spell them.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(format!("{} is neither true nor false", quoted(text))),
    }
}

/// An address and a port to listen on.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let port = text.strip_prefix(':').unwrap_or(text);
    if port.parse::<u16>().is_ok() {
        return Err(format!(
            "{} has no address: write \"127.0.0.1:{port}\" for this host alone, \"0.0.0.0:{port}\" or \"[::]:{port}\" for all",
            quoted(text)
        ));
    }
    let address = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    match address.parse() {
        Ok(IpAddr::V4(address)) => Err(format!("{} has no port: write \"{address}:5050\"", quoted(text))),
        Ok(IpAddr::V6(address)) => Err(format!("{} has no port: write \"[{address}]:5050\"", quoted(text))),
        Err(_) => Err(format!(
            "{} is not an address and port such as \"127.0.0.1:5050\" or \"[::1]:5050\" (names are not looked up)",
            quoted(text)
        )),
    }
}

/// A network, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse()
        .or_else(|_| address())
        .map_err(|_| format!("{} is neither a network such as \"10.0.0.0/8\" nor an address", quoted(text)))
}

/// The address of a registry: `http://` or `https://`, a host, maybe a port. The error never repeats a password.
/// Bytes a second. Less than a mebibyte would look like a connection that has died.
pub(super) fn bandwidth(text: &str) -> Result<u64, String> {
    let bytes = bytes(text)?;
    if bytes < 1 << 20 {
        return Err(format!("{} is less than \"1MiB\" a second", quoted(text)));
    }
    Ok(bytes)
}

/// The address of a proxy, `http://proxy.corp:3128`, maybe with `user:password@`; without a scheme it is `http`. The error
/// repeats nothing of it, for it may hold a password.
pub(super) fn proxy(text: &str) -> Result<Secret, String> {
    let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = Url::parse(&text).map_err(|error| format!("the address of the proxy can't be read: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("a proxy is reached by http:// or https://, not by {}://", url.scheme()));
    }
    Ok(Secret::new(url.as_str()))
}

/// An address, as endpoints are.
pub(super) fn endpoint(text: &str) -> Result<Url, String> {
    // Whatever has an @ may carry a password, so that nothing of it is repeated.
    if text.contains('@') {
        return Err("an endpoint carries no user name or password: write them in credentials".to_owned());
    }
    let example = "such as \"https://registry.corp\"";
    let url = match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => url,
        Ok(_) | Err(url::ParseError::RelativeUrlWithoutBase) => {
            return Err(format!("{} does not begin with http:// or https://, {example}", quoted(text)));
        }
        Err(error) => return Err(format!("{} is not an address {example}: {error}", quoted(text))),
    };
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        let origin = url.origin().ascii_serialization();
        return Err(format!("{} has more than a host and a port: write {origin:?}", quoted(text)));
    }
    Ok(url)
}

/// What the log shows: a level, or several divided by commas, each for a target (`info,hyper=warn`).
pub fn log_level(text: &str) -> Result<String, String> {
    for directive in text.split(',') {
        let (target, level) =
            directive.split_once('=').map_or((None, directive), |(target, level)| (Some(target), level));
        let target_byte = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b':';
        if target.is_some_and(|target| target.is_empty() || !target.bytes().all(target_byte)) {
            return Err(format!(
                "{} is not a target of the log, such as \"hyper\" in \"hyper=warn\"",
                quoted(directive)
            ));
        }
        if !LEVELS.contains(&level) {
            let like = most_like(level, LEVELS).map_or(String::new(), |like| format!("; did you mean {like:?}?"));
            return Err(format!("{} is not a level: {}{like}", quoted(level), LEVELS.join(", ")));
        }
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: RangeInclusive<Duration> = Duration::ZERO..=Duration::MAX;

    #[test]
    fn durations_are_read_and_written_alike() {
        let all = [
            ("0s", 0),
            ("1ms", 1),
            ("1500ms", 1_500),
            ("90s", 90_000),
            ("1m", 60_000),
            ("36h", 129_600_000),
            ("30d", 2_592_000_000),
        ];
        for (text, milliseconds) in all {
            assert_eq!(duration(text, &ANY), Ok(Duration::from_millis(milliseconds)));
            assert_eq!(duration_text(Duration::from_millis(milliseconds)), text);
        }
        assert_eq!(duration("0", &ANY), Ok(Duration::ZERO));
        assert_eq!(duration("2w", &ANY).map(duration_text), Ok("14d".to_owned()));
        for bad in
            ["", "1", "s", "-1s", "1.5s", "1M", "1 minute", "1m30s", "99999999999999999999s", "18446744073709551615w"]
        {
            assert!(duration(bad, &ANY).unwrap_err().contains("is not a duration"), "{bad}");
        }
        let limits = Duration::from_secs(1)..=Duration::from_mins(1);
        assert_eq!(duration("2m", &limits), Err("\"2m\" is not between \"1s\" and \"1m\"".to_owned()));
    }

    #[test]
    fn sizes_are_read_and_written_alike() {
        for (text, size) in
            [("0B", 0), ("12345B", 12345), ("1KiB", 1024), ("1025KiB", 1_049_600), ("50GiB", 53_687_091_200)]
        {
            assert_eq!(bytes(text), Ok(size));
            assert_eq!(bytes_text(size), text);
        }
        assert_eq!(bytes("2Gi"), bytes("2GiB"));
        assert_eq!(bytes("2 GB"), Ok(2_000_000_000));
        assert_eq!(bytes("1024GiB").map(bytes_text), Ok("1TiB".to_owned()));
        for bad in ["", "50", "GiB", "-1B", "1.5TiB", "50G", "50gib", "20000000TiB"] {
            assert!(bytes(bad).unwrap_err().contains("is not a size"), "{bad}");
        }
    }

    #[test]
    fn shares() {
        assert_eq!(percent("80%", &(1..=100)), Some(Ok(80)));
        assert_eq!(percent("80", &(1..=100)), None);
        for bad in ["0%", "101%", "%", "-1%", "1.5%", "300%"] {
            assert!(percent(bad, &(1..=100)).unwrap().is_err(), "{bad}");
        }
    }

    #[test]
    fn levels() {
        for good in ["info", "off", "info,hyper=warn", "cachalot::store=trace"] {
            assert_eq!(log_level(good).unwrap(), good);
        }
        assert_eq!(
            log_level("info,debgu").unwrap_err(),
            "\"debgu\" is not a level: off, error, warn, info, debug, trace; did you mean \"debug\"?"
        );
        assert_eq!(
            log_level("=info").unwrap_err(),
            "\"=info\" is not a target of the log, such as \"hyper\" in \"hyper=warn\""
        );
    }
}
