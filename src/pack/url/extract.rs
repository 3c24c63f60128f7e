//! From a fetched page to what the buyer reads. Runs on a thread that cannot be stopped, so each
//! step ends soon for any page: one walk over the bounded tree for what stands in it, and the
//! search for the main text only where its cost is bounded too.

use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
};

use dom_query::{Document, Element, NodeData, NodeId, NodeRef};
use dom_smoothie::{Config, Readability, TextMode};
use html5ever::ns;
use serde_json::{Value, json};
use url::Url;

use super::{
    fetch::{Page, PageKind},
    guard::URL_CHARS_MAX,
    parse::{self, Parsed},
};
use crate::pack::fields::closed_object;

/// Most links that are returned.
pub(super) const LINKS_MAX: usize = 500;
/// Most headings that are returned.
pub(super) const HEADINGS_MAX: usize = 200;
const TITLE_CHARS_MAX: usize = 500;
const DESCRIPTION_CHARS_MAX: usize = 2_000;
const HEADING_CHARS_MAX: usize = 300;
const LINK_TEXT_CHARS_MAX: usize = 200;
const LANGUAGE_CHARS_MAX: usize = 64;
/// No more of an element's text is looked at than this, white space included.
const SCAN_BYTES_MAX: usize = 8 * 1024;

/// The search for the main text looks at the whole inside of an element, for most elements, a few
/// times: it costs about the sum of all depths. Pages worth more than this yield the text of the
/// body as it is. A long encyclopaedia article costs a tenth of it.
const READING_WORK_MAX: usize = 4_000_000;
/// A byte of text is that much cheaper than a node.
const TEXT_BYTES_PER_WORK: usize = 16;
/// The article is written out as HTML, too, and at each character to escape all of the text behind it
/// is looked at, at about this many bytes in the time of a node.
const ESCAPE_BYTES_PER_WORK: usize = 512;
/// Each heading is compared with the title, word by word.
const HEADING_WORK: usize = 2_000;

/// Elements whose text is no text of the page.
const UNREADABLE: &str = "script, style, noscript, template, svg, math, iframe, object, select, textarea";

/// What stands in a page, but for its main text.
#[derive(Default)]
struct Facts {
    title: Option<String>,
    social_title: Option<String>,
    description: Option<String>,
    social_description: Option<String>,
    canonical_url: Option<Url>,
    language: Option<String>,
    headings: Vec<(u8, String)>,
    links: Vec<(Url, String)>,
    /// Whether there were more headings or links.
    cut: bool,
}

/// The main text of a page, and where it was found.
struct MainText {
    text: String,
    source: &'static str,
}

/// The envelope's `data` for a page.
pub(super) fn extract(page: &Page, requested: &str, max_chars: usize) -> Value {
    let (source, encoding) = parse::decode(&page.body, page.charset.as_deref(), page.kind == PageKind::Html);
    let (facts, main, complete) = match page.kind {
        PageKind::Text => {
            (Facts::default(), MainText { text: source.trim().to_owned(), source: "plain" }, true)
        }
        PageKind::Html => {
            let Parsed { document, complete } = parse::parse(&source);
            let facts = Facts::of(&document, &page.final_url);
            (facts, main_text(document, &page.final_url), complete)
        }
    };
    let word_count = main.text.split_whitespace().count();
    let cut_at = main.text.char_indices().nth(max_chars).map(|(index, _)| index);
    let text = cut_at.map_or(main.text.as_str(), |index| &main.text[..index]);
    let redirects = page
        .redirects
        .iter()
        .map(|redirect| json!({ "status": redirect.status, "to": redirect.to.as_str() }));
    let headings = facts.headings.iter().map(|(level, text)| json!({ "level": level, "text": text }));
    let links = facts.links.iter().map(|(url, text)| json!({ "url": url.as_str(), "text": text }));
    let title = facts.title.or(facts.social_title);
    json!({
        "url": requested,
        "final_url": page.final_url.as_str(),
        "redirects": redirects.collect::<Vec<_>>(),
        "status": page.status,
        "content_type": page.content_type,
        "charset": encoding,
        "body_bytes": page.body.len(),
        "body_sha256": hex(&page.sha256),
        "title": title.or_else(|| facts.headings.first().map(|(_, text)| text.clone())),
        "description": facts.description.or(facts.social_description),
        "canonical_url": facts.canonical_url.as_ref().map(Url::as_str),
        "language": facts.language,
        "text": text,
        "text_source": main.source,
        "word_count": word_count,
        "headings": headings.collect::<Vec<_>>(),
        "links": links.collect::<Vec<_>>(),
        "truncated": cut_at.is_some() || facts.cut || !complete,
    })
}

impl Facts {
    /// Gathers them in one walk.
    fn of(document: &Document, final_url: &Url) -> Self {
        let base = document.base_uri().and_then(|href| final_url.join(&href).ok());
        let base = base.filter(is_web).unwrap_or_else(|| final_url.clone());
        let mut facts = Self::default();
        let mut seen = HashSet::new();
        for node in document.root().descendants_it() {
            let Some(element) = node.element_ref() else { continue };
            if element.name.ns != ns!(html) {
                continue;
            }
            match element.name.local.as_ref() {
                "html" => facts.language = attribute(&element, "lang", LANGUAGE_CHARS_MAX),
                "title" if facts.title.is_none() => facts.title = text_of(&node, TITLE_CHARS_MAX),
                "meta" => facts.read_meta(&element),
                "link" if facts.canonical_url.is_none() && is_canonical(&element) => {
                    facts.canonical_url = target(&element, &base);
                }
                name @ ("h1" | "h2" | "h3" | "h4" | "h5" | "h6") => facts.add_heading(name, &node),
                "a" => facts.add_link(target(&element, &base), &node, &mut seen),
                _ => {}
            }
        }
        facts
    }

    fn read_meta(&mut self, element: &Element) {
        let name = attribute(element, "name", DESCRIPTION_CHARS_MAX)
            .or_else(|| attribute(element, "property", DESCRIPTION_CHARS_MAX))
            .unwrap_or_default()
            .to_ascii_lowercase();
        let (fact, chars_max) = match name.as_str() {
            "description" => (&mut self.description, DESCRIPTION_CHARS_MAX),
            "og:description" => (&mut self.social_description, DESCRIPTION_CHARS_MAX),
            "og:title" => (&mut self.social_title, TITLE_CHARS_MAX),
            _ => return,
        };
        if fact.is_none() {
            *fact = attribute(element, "content", chars_max);
        }
    }

    fn add_heading(&mut self, name: &str, node: &NodeRef) {
        let level = name.bytes().next_back().map_or(0, |digit| digit.saturating_sub(b'0'));
        if self.headings.len() == HEADINGS_MAX {
            self.cut = true;
        } else if let Some(text) = text_of(node, HEADING_CHARS_MAX) {
            self.headings.push((level, text));
        }
    }

    fn add_link(&mut self, target: Option<Url>, node: &NodeRef, seen: &mut HashSet<Url>) {
        let Some(mut url) = target else { return };
        // Places within one page are one link.
        url.set_fragment(None);
        if seen.contains(&url) {
            return;
        }
        if self.links.len() == LINKS_MAX {
            self.cut = true;
            return;
        }
        seen.insert(url.clone());
        self.links.push((url, text_of(node, LINK_TEXT_CHARS_MAX).unwrap_or_default()));
    }
}

/// The article within the page if there seems to be one, else all text of its body.
fn main_text(document: Document, final_url: &Url) -> MainText {
    document.select(UNREADABLE).remove();
    let body = document.body().map(|body| body.formatted_text().trim().to_owned()).unwrap_or_default();
    if READING_WORK_MAX < reading_work(&document) {
        return MainText { text: body, source: "body" };
    }
    match article(document, final_url) {
        Some(text) => MainText { text, source: "article" },
        None => MainText { text: body, source: "body" },
    }
}

fn article(document: Document, final_url: &Url) -> Option<String> {
    // It is compared with every heading.
    let title = document.select_single("title");
    let shortened = title.nodes().first().and_then(|title| text_of(title, TITLE_CHARS_MAX));
    title.set_text(&shortened.unwrap_or_default());
    let config = Config { disable_json_ld: true, text_mode: TextMode::Formatted, ..Config::default() };
    // The crate is good at articles; on whatever else a stranger sends it may as well panic.
    let article = catch_unwind(AssertUnwindSafe(|| {
        Readability::with_document(document, Some(final_url.as_str()), Some(config)).ok()?.parse().ok()
    }));
    let article =
        article.inspect_err(|_| tracing::warn!("The search for a main text panicked.")).ok().flatten()?;
    let text = article.text_content.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// What the search for the main text will cost, in nodes looked at.
fn reading_work(document: &Document) -> usize {
    let root = document.root();
    let mut depths: HashMap<NodeId, usize> = HashMap::from([(root.id, 0)]);
    let mut work: usize = 0;
    for node in root.descendants_it() {
        let above = node.parent().and_then(|parent| depths.get(&parent.id).copied());
        let depth = above.unwrap_or(0).saturating_add(1);
        let own = node.query_or(0, |node| match &node.data {
            NodeData::Text { contents } => text_work(contents, depth),
            NodeData::Element(element) if matches!(&*element.name.local, "h1" | "h2") => {
                depth.saturating_add(HEADING_WORK)
            }
            _ => depth,
        });
        depths.insert(node.id, depth);
        work = work.saturating_add(own);
    }
    work
}

fn text_work(text: &str, depth: usize) -> usize {
    // Ampersands, and the first byte of a no-break space, which is that of other characters as well.
    let escapes = text.bytes().filter(|byte| matches!(byte, b'&' | 0xC2)).count();
    let reading = depth.saturating_mul(1 + text.len() / TEXT_BYTES_PER_WORK);
    reading.saturating_add(escapes.saturating_mul(text.len() / ESCAPE_BYTES_PER_WORK))
}

fn is_canonical(element: &Element) -> bool {
    let relation = attribute(element, "rel", URL_CHARS_MAX).unwrap_or_default();
    relation.split_whitespace().any(|word| word.eq_ignore_ascii_case("canonical"))
}

/// Where a link leads, if to the web.
fn target(element: &Element, base: &Url) -> Option<Url> {
    let href = element.attr("href")?;
    let url = base.join(href.trim()).ok()?;
    (is_web(&url) && url.as_str().len() <= URL_CHARS_MAX).then_some(url)
}

fn is_web(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
}

/// An attribute as text, `None` where it is missing or blank.
fn attribute(element: &Element, name: &str, chars_max: usize) -> Option<String> {
    let value = element.attr(name)?;
    let mut line = Line::new(chars_max);
    line.push(&value);
    line.into_text()
}

/// The text within a node on one line, `None` where there is none.
fn text_of(node: &NodeRef, chars_max: usize) -> Option<String> {
    let mut line = Line::new(chars_max);
    for node in node.descendants_it() {
        let goes_on = node.query_or(true, |node| match &node.data {
            NodeData::Text { contents } => line.push(contents),
            NodeData::Element(element) if &*element.name.local == "br" => line.push(" "),
            _ => line.push(""),
        });
        if !goes_on {
            break;
        }
    }
    line.into_text()
}

/// Text with every run of white space made one blank, of bounded length.
struct Line {
    text: String,
    chars_left: usize,
    bytes_left: usize,
    blank_due: bool,
}

impl Line {
    fn new(chars_max: usize) -> Self {
        Self { text: String::new(), chars_left: chars_max, bytes_left: SCAN_BYTES_MAX, blank_due: false }
    }

    /// Adds `piece`; whether there is room for more.
    fn push(&mut self, piece: &str) -> bool {
        // An empty piece counts as well: it took a node to find it.
        self.bytes_left = self.bytes_left.saturating_sub(1);
        for character in piece.chars() {
            if self.chars_left == 0 || self.bytes_left == 0 {
                return false;
            }
            self.bytes_left = self.bytes_left.saturating_sub(character.len_utf8());
            if character.is_whitespace() {
                self.blank_due = !self.text.is_empty();
                continue;
            }
            if self.blank_due {
                self.blank_due = false;
                self.text.push(' ');
                self.chars_left = self.chars_left.saturating_sub(1);
            }
            if 0 < self.chars_left {
                self.text.push(character);
                self.chars_left = self.chars_left.saturating_sub(1);
            }
        }
        0 < self.chars_left && 0 < self.bytes_left
    }

    fn into_text(self) -> Option<String> {
        let text = self.text.trim_end();
        (!text.is_empty()).then(|| text.to_owned())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// JSON Schema of the envelope's `data`.
pub(super) fn schema() -> Value {
    let url = json!({ "type": "string", "format": "uri" });
    let optional = json!({ "type": ["string", "null"] });
    let mut schema = closed_object(&json!({
        "url": { "type": "string", "format": "uri", "description": "As it was asked for." },
        "final_url": { "type": "string", "format": "uri", "description": "Where the page was, behind all redirects." },
        "redirects": {
            "type": "array",
            "items": closed_object(&json!({ "status": { "type": "integer" }, "to": &url })),
        },
        "status": { "type": "integer", "minimum": 200, "maximum": 299 },
        "content_type": { "type": "string" },
        "charset": { "type": "string", "description": "The encoding that the body was read as." },
        "body_bytes": { "type": "integer", "minimum": 0 },
        "body_sha256": { "type": "string", "description": "Hex digest of the body, after gzip is undone." },
        "title": &optional,
        "description": &optional,
        "canonical_url": { "type": ["string", "null"], "format": "uri" },
        "language": { "type": ["string", "null"], "description": "As the page declares it." },
        "text": { "type": "string", "description": "The main text, of max_chars characters at most." },
        "text_source": {
            "type": "string", "enum": ["article", "body", "plain"],
            "description": "Whether an article was found, all of the body was taken, or the page is plain text.",
        },
        "word_count": { "type": "integer", "minimum": 0, "description": "Words of the whole main text." },
        "headings": {
            "type": "array", "maxItems": HEADINGS_MAX,
            "items": closed_object(&json!({
                "level": { "type": "integer", "minimum": 1, "maximum": 6 },
                "text": { "type": "string" },
            })),
        },
        "links": {
            "type": "array", "maxItems": LINKS_MAX,
            "items": closed_object(&json!({ "url": &url, "text": { "type": "string" } })),
        },
        "truncated": {
            "type": "boolean",
            "description": "Whether text, headings or links were cut, or the page was too complex to read to its end.",
        },
    }));
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema
}
