//! How settings are read from flags, for the structs of settings wherever they are at home: clap is
//! derived on them, so that a setting's flag, default and meaning stand in one place.
//!
//! Must hold: what could serve nobody (a limit of 0, no time at all) is refused where it is read.

use std::{fmt::Display, str::FromStr, time::Duration};

use clap::{Args, Command};

const SERVES_NOBODY: &str = "it could serve nobody: give it more, or leave it out";

/// A setting that can be off: clap takes a plain `Option` for a flag without a default.
pub(crate) type Switchable<T> = Option<T>;

/// The settings of `T` where no flag is given.
pub(crate) fn defaults<T: Args>() -> T {
    let command = T::augment_args(Command::new("defaults").no_binary_name(true));
    let matches = command.try_get_matches_from([""; 0]);
    let settings = matches.and_then(|mut matches| T::from_arg_matches_mut(&mut matches));
    settings.expect("every setting has a default that can be read")
}

/// A time, such as `500ms`, `30s`, `10m`.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// A time that is not none.
pub(crate) fn some_time(text: &str) -> Result<Duration, String> {
    let time = time(text)?;
    if time.is_zero() {
        return Err(SERVES_NOBODY.to_owned());
    }
    Ok(time)
}

/// A time, or `0s` for never.
pub(crate) fn time_or_never(text: &str) -> Result<Switchable<Duration>, String> {
    Ok(Some(time(text)?).filter(|time| !time.is_zero()))
}

/// A size in bytes, of `LEAST` or more.
pub(crate) fn bytes<const LEAST: u32, T>(text: &str) -> Result<T, String>
where
    T: FromStr<Err: Display> + TryFrom<u32> + PartialOrd,
{
    let size: T = text.parse().map_err(|error: T::Err| error.to_string())?;
    match T::try_from(LEAST) {
        Ok(least) if size >= least => Ok(size),
        _ => Err(format!(
            "it could serve nobody: give it {LEAST} bytes or more"
        )),
    }
}

/// A number that is not 0.
pub(crate) fn some<T>(text: &str) -> Result<T, String>
where
    T: FromStr<Err: Display> + From<u8> + PartialEq,
{
    let number: T = text.parse().map_err(|error: T::Err| error.to_string())?;
    if number == T::from(0) {
        return Err(SERVES_NOBODY.to_owned());
    }
    Ok(number)
}
