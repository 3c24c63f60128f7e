//! Money: whole micro-dollars, checked, never a float.
//!
//! Every price, fee and charge is a multiple of [`GRAIN`] micros, so that four decimals show it
//! exactly. Operators that could overflow are not implemented on purpose: whoever adds or subtracts
//! says what happens at the edge.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

/// Micros in one dollar.
const MICROS_PER_USD: i64 = 1_000_000;
/// The smallest amount that four decimals can show: $0.0001.
const GRAIN: i64 = 100;

/// An amount of US dollars in whole micros (1/1,000,000 USD), from zero to [`UsdMicros::MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UsdMicros(i64);

/// Why a text or number is not an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAmount {
    /// Not of the form `12`, `12.5` or `12.3456`.
    #[error("must be US dollars with at most 4 decimals, such as \"5.00\"")]
    Malformed,
    /// Below zero, or above [`UsdMicros::MAX`].
    #[error("must be from 0 to 1000000000.0000 US dollars")]
    OutOfRange,
}

impl UsdMicros {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// $1,000,000,000: the most one tenant's books hold. Far below 2^53 micros, up to which Lua
    /// compares exactly.
    pub const MAX: Self = Self(1_000_000_000 * MICROS_PER_USD);

    /// An amount known when the program is written.
    ///
    /// # Panics
    /// At compile time, where it is used for constants, when the amount is out of range.
    pub const fn constant(micros: i64) -> Self {
        assert!(micros >= 0 && micros <= Self::MAX.0, "an amount is from zero to UsdMicros::MAX");
        Self(micros)
    }

    /// The amount of `micros`.
    ///
    /// # Errors
    /// [`BadAmount::OutOfRange`] below zero or above [`UsdMicros::MAX`].
    pub const fn new(micros: i64) -> Result<Self, BadAmount> {
        if micros < 0 || micros > Self::MAX.0 { Err(BadAmount::OutOfRange) } else { Ok(Self(micros)) }
    }

    /// The number of micros.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// Whether this is nothing.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, or `None` above [`UsdMicros::MAX`].
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) if sum <= Self::MAX.0 => Some(Self(sum)),
            _ => None,
        }
    }

    /// The difference, or `None` where it would fall below zero.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        if other.0 > self.0 { None } else { Some(Self(self.0 - other.0)) }
    }

    /// This price times a count of units, or `None` above [`UsdMicros::MAX`].
    pub fn checked_mul(self, count: u64) -> Option<Self> {
        let product = i128::from(self.0).checked_mul(i128::from(count))?;
        i64::try_from(product).ok().and_then(|micros| Self::new(micros).ok())
    }

    /// `percent` of this amount, rounded down to what four decimals show.
    pub fn percent_rounded_down(self, percent: u8) -> Self {
        let share = i128::from(self.0) * i128::from(percent) / 100;
        let grain = i128::from(GRAIN);
        // A share of at most 255 % of MAX, divided by 100, fits 64 bits by far.
        Self(i64::try_from(share / grain * grain).unwrap_or(Self::MAX.0).min(Self::MAX.0))
    }

    /// The next amount, upwards, that four decimals show exactly. Usage rounds this way.
    pub const fn rounded_up(self) -> Self {
        // MAX is itself a multiple of the grain, so this cannot pass it.
        Self((self.0 + GRAIN - 1) / GRAIN * GRAIN)
    }

    /// Whether four decimals show this amount exactly.
    pub const fn is_whole_grain(self) -> bool {
        self.0 % GRAIN == 0
    }
}

impl fmt::Display for UsdMicros {
    /// Four decimals: `5.0000`. An amount between two grains, which no price or charge is, shows
    /// all six, because rounding here would hide a bug in the books.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / MICROS_PER_USD, self.0 % MICROS_PER_USD);
        if self.is_whole_grain() {
            write!(f, "{whole}.{:04}", rest / GRAIN)
        } else {
            write!(f, "{whole}.{rest:06}")
        }
    }
}

impl FromStr for UsdMicros {
    type Err = BadAmount;

    /// Reads `12`, `12.5` … `12.3456`. No sign, exponent, blank or bare point.
    fn from_str(text: &str) -> Result<Self, BadAmount> {
        let (whole, decimals) = match text.split_once('.') {
            Some((whole, decimals)) if (1..=4).contains(&decimals.len()) => (whole, decimals),
            Some(_) => return Err(BadAmount::Malformed),
            None => (text, ""),
        };
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(decimals) {
            return Err(BadAmount::Malformed);
        }
        let whole = whole.trim_start_matches('0');
        if whole.len() > 10 {
            return Err(BadAmount::OutOfRange);
        }
        let micros: i64 = format!("{whole}{decimals:0<6}").parse().ok().ok_or(BadAmount::Malformed)?;
        Self::new(micros)
    }
}

impl Serialize for UsdMicros {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
