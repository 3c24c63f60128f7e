//! Pages of lists: the cursor that a request brings, and the one that its answer hands out.

use actix_web::{HttpRequest, HttpResponse, http::header, web::Data};
use serde::Serialize;
use serde_json::json;

use super::{
    App,
    context::ids,
    problem::{Kind, Problem},
    query::Query,
    shape,
};
use crate::{domain::cursor::CursorKey, flow};

/// Rows of a page, unless the request says how many.
const LIMIT_DEFAULT: u16 = 20;

/// One list, as its owner sees it with one filter: what a cursor is good for.
pub struct List {
    key: CursorKey,
    scope: String,
    cursor: Option<String>,
    /// How many rows a page has.
    pub limit: u16,
}

impl List {
    /// The list `name` of `owner` (a tenant, or the operators) with `filter`, whose `limit` and `cursor` are
    /// in `query`.
    ///
    /// # Errors
    /// [`Problem`]
    pub async fn of(
        app: &Data<App>,
        request: &HttpRequest,
        owner: impl serde::Serialize,
        mut query: Query,
        name: &str,
        filter: impl serde::Serialize,
    ) -> Result<Self, Problem> {
        let limit = query.limit(LIMIT_DEFAULT);
        let cursor = query.text("cursor").map(str::to_owned);
        query.end()?;
        let key = app.cursor_key().await.map_err(|error| Problem::of_flow(error, ids(request).trace_id))?;
        Ok(Self { key, scope: json!([name, owner, filter]).to_string(), cursor, limit })
    }

    /// The place after which the page begins, if the request brings one.
    ///
    /// # Errors
    /// [`Problem`] when the cursor was not handed out for this list.
    pub fn after<T>(&self, read: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>, Problem> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let place = self.key.open(&self.scope, cursor).and_then(|place| read(&place));
        place.map(Some).ok_or_else(|| Problem::new(Kind::InvalidCursor, Kind::InvalidCursor.advice()))
    }

    /// The answer; `next` is the place of its last row, where another page follows.
    pub fn answer(
        &self,
        app: &App,
        request: &HttpRequest,
        data: Vec<impl Serialize>,
        next: Option<&[u8]>,
    ) -> HttpResponse {
        let mut response = HttpResponse::Ok();
        let next = next.map(|place| self.key.seal(&self.scope, place));
        if let Some(cursor) = &next {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            for (name, value) in url::form_urlencoded::parse(request.query_string().as_bytes()) {
                if name != "cursor" {
                    query.append_pair(&name, &value);
                }
            }
            let query = query.append_pair("cursor", cursor).finish();
            let link = format!("<{}{}?{query}>; rel=\"next\"", app.public_url, request.path());
            response.insert_header((header::LINK, link));
        }
        response.json(shape::Page { data, next_cursor: next })
    }
}

impl App {
    /// What cursors are sealed with; asked for once.
    async fn cursor_key(&self) -> Result<CursorKey, flow::Error> {
        let cx = std::sync::Arc::clone(&self.cx);
        let ask = async {
            let key = self.detached.run(async move { Ok(cx.store.cursor_key().await?) }).await;
            key.map_err(flow::Error::from).flatten()
        };
        self.cursor_key.get_or_try_init(|| ask).await.cloned()
    }
}
