//! SQL files as cached prepared statements.
//!
//! `diesel::sql_query` is prepared anew on every call, which doubles the round trips of the hot path.
//! A [`Sql`] is keyed by its text instead, so each connection prepares each file once.

use chrono::{DateTime, NaiveDate, Utc};
use diesel::{
    QueryResult,
    pg::Pg,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
    sql_types::{
        Array, BigInt, Bytea, Date, Integer, Json, Nullable, Text, Timestamptz, Untyped, Uuid as SqlUuid,
    },
};
use uuid::Uuid;

/// One statement and its parameters. `$1`, `$2` … must first appear in this order; each may appear
/// again.
pub(super) struct Sql {
    text: &'static str,
    binds: Vec<Bind>,
}

/// A parameter.
#[derive(Debug)]
pub(super) enum Bind {
    Uuid(Option<Uuid>),
    Uuids(Vec<Uuid>),
    Text(Option<String>),
    Texts(Option<Vec<String>>),
    BigInt(Option<i64>),
    Integer(i32),
    Bytes(Vec<u8>),
    Json(serde_json::Value),
    Time(Option<DateTime<Utc>>),
    Date(NaiveDate),
}

macro_rules! bind_from {
    ($($from:ty => |$value:ident| $bind:expr;)*) => {$(
        impl From<$from> for Bind {
            fn from($value: $from) -> Self {
                $bind
            }
        }
    )*};
}

bind_from! {
    Uuid => |value| Self::Uuid(Some(value));
    Option<Uuid> => |value| Self::Uuid(value);
    Vec<Uuid> => |value| Self::Uuids(value);
    &str => |value| Self::Text(Some(value.to_owned()));
    String => |value| Self::Text(Some(value));
    Option<String> => |value| Self::Text(value);
    Option<Vec<String>> => |value| Self::Texts(value);
    i64 => |value| Self::BigInt(Some(value));
    Option<i64> => |value| Self::BigInt(value);
    i32 => |value| Self::Integer(value);
    Vec<u8> => |value| Self::Bytes(value);
    serde_json::Value => |value| Self::Json(value);
    Option<DateTime<Utc>> => |value| Self::Time(value);
    NaiveDate => |value| Self::Date(value);
}

impl Sql {
    pub(super) fn new(text: &'static str) -> Self {
        Self { text, binds: Vec::new() }
    }

    /// Gives the next parameter its value.
    pub(super) fn bind(mut self, value: impl Into<Bind>) -> Self {
        self.binds.push(value.into());
        self
    }
}

impl QueryFragment<Pg> for Sql {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let mut parts = self.text.split('$');
        out.push_sql(parts.next().unwrap_or_default());
        let mut bound = 0;
        for part in parts {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            let (number, rest) = part.split_at(digits);
            let number: usize = number.parse().ok().ok_or_else(|| wrong(self.text))?;
            if number == bound + 1 {
                bound = number;
                push(&mut out, self.binds.get(number - 1).ok_or_else(|| wrong(self.text))?)?;
            } else if (1..=bound).contains(&number) {
                out.push_sql(&format!("${number}"));
            } else {
                return Err(wrong(self.text));
            }
            out.push_sql(rest);
        }
        if bound == self.binds.len() { Ok(()) } else { Err(wrong(self.text)) }
    }
}

fn wrong(text: &str) -> diesel::result::Error {
    let name = text.lines().next().unwrap_or_default();
    diesel::result::Error::QueryBuilderError(format!("parameters do not fit: {name}").into())
}

fn push<'b>(out: &mut AstPass<'_, 'b, Pg>, bind: &'b Bind) -> QueryResult<()> {
    match bind {
        Bind::Uuid(value) => out.push_bind_param::<Nullable<SqlUuid>, _>(value),
        Bind::Uuids(values) => out.push_bind_param::<Array<SqlUuid>, _>(values),
        Bind::Text(value) => out.push_bind_param::<Nullable<Text>, _>(value),
        Bind::Texts(values) => out.push_bind_param::<Nullable<Array<Text>>, _>(values),
        Bind::BigInt(value) => out.push_bind_param::<Nullable<BigInt>, _>(value),
        Bind::Integer(value) => out.push_bind_param::<Integer, _>(value),
        Bind::Bytes(value) => out.push_bind_param::<Bytea, _>(value),
        Bind::Json(value) => out.push_bind_param::<Json, _>(value),
        Bind::Time(value) => out.push_bind_param::<Nullable<Timestamptz>, _>(value),
        Bind::Date(value) => out.push_bind_param::<Date, _>(value),
    }
}

impl QueryId for Sql {
    type QueryId = ();
    // Without a static id the statement cache is keyed by the text.
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Sql {
    type SqlType = Untyped;
}
