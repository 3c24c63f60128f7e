//! Query strings: only known fields, each once, each judged; every field that is wrong is named.

use std::str::FromStr;

use actix_web::HttpRequest;
use chrono::{DateTime, NaiveDate, Utc};

use super::problem::{Kind, Problem};
use crate::pack::FieldError;

/// A query in the reading: fields are taken one by one, and [`Query::end`] says what was wrong.
pub struct Query {
    fields: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

impl Query {
    /// The query of a request that knows these fields.
    pub fn of(request: &HttpRequest, known: &[&str]) -> Self {
        let mut query = Self { fields: Vec::new(), errors: Vec::new() };
        for (name, value) in url::form_urlencoded::parse(request.query_string().as_bytes()) {
            if !known.contains(&name.as_ref()) {
                let right = match known {
                    [] => "is not a field of this request, whose query has none".to_owned(),
                    known => format!("is not a field of this request: {} are", known.join(", ")),
                };
                query.wrong(&name, &right);
            } else if query.fields.iter().any(|(other, _)| *other == name) {
                query.wrong(&name, "is given more than once");
            } else {
                query.fields.push((name.into_owned(), value.into_owned()));
            }
        }
        query
    }

    /// Refuses every query: of requests that know no field.
    ///
    /// # Errors
    /// [`Problem`] with every field that is there.
    pub fn none(request: &HttpRequest) -> Result<(), Problem> {
        Self::of(request, &[]).end()
    }

    /// A field's text, if it is given.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// Says that a field is wrong.
    pub fn wrong(&mut self, name: &str, right: &str) {
        self.errors.push(error(name, right));
    }

    /// A field as a value, if it is given and is one.
    fn value<T>(&mut self, name: &str, right: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.text(name)?;
        let value = read(text);
        if value.is_none() {
            self.wrong(name, right);
        }
        value
    }

    /// A day.
    pub fn day(&mut self, name: &str) -> Option<NaiveDate> {
        self.value(name, "must be a day of the calendar as YYYY-MM-DD, such as 2028-02-29", day)
    }

    /// An instant.
    pub fn time(&mut self, name: &str) -> Option<DateTime<Utc>> {
        let right =
            "must be a time as RFC 3339 writes it, such as 2028-02-29T12:00:00Z; a + in it is written %2B";
        self.value(name, right, |text| Some(DateTime::parse_from_rfc3339(text).ok()?.with_timezone(&Utc)))
    }

    /// One of these words.
    pub fn word(&mut self, name: &str, words: &[&'static str]) -> Option<&'static str> {
        let right = format!("must be one of {}", words.join(", "));
        self.value(name, &right, |text| words.iter().copied().find(|word| *word == text))
    }

    /// A pack's name, whether or not there is such a pack now.
    pub fn pack_type(&mut self, name: &str) -> Option<String> {
        let read = |text: &str| {
            let sound = (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
            sound.then(|| text.to_owned())
        };
        self.value(name, "must be the name of a pack, such as decision", read)
    }

    /// How many rows a page has.
    pub fn limit(&mut self, default: u16) -> u16 {
        let read = |text: &str| {
            let plain = text.bytes().all(|byte| byte.is_ascii_digit());
            u16::from_str(text).ok().filter(|limit| plain && (1..=100).contains(limit))
        };
        self.value("limit", "must be a whole number from 1 to 100", read).unwrap_or(default)
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`Problem`] with every field that was wrong.
    pub fn end(self) -> Result<(), Problem> {
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::fields(Kind::InvalidRequest, self.errors)) }
    }
}

/// The problem of one wrong field.
pub fn wrong(name: &str, right: &str) -> Problem {
    Problem::fields(Kind::InvalidRequest, vec![error(name, right)])
}

fn error(name: &str, right: &str) -> FieldError {
    let pointer = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
    FieldError { pointer, detail: right.to_owned() }
}

/// Reads `2028-02-29` and nothing else: no sign, no missing zero.
fn day(text: &str) -> Option<NaiveDate> {
    let form = text.len() == 10
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    let number = |part: &str| part.parse::<u32>().ok();
    let (year, month, day) = (text.get(0..4)?, text.get(5..7)?, text.get(8..10)?);
    NaiveDate::from_ymd_opt(year.parse().ok()?, number(month)?, number(day)?).filter(|_| form)
}
