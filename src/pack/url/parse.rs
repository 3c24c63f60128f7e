//! Bytes to a document tree, whatever the bytes are.
//!
//! An HTML parser promises a tree for any input, not a small one, nor soon: elements nested a
//! hundred thousand deep make it scan its stack for each of them, formatting elements multiply, and
//! attribute names are compared each with each. So every token passes [`Bounded`] first, which keeps
//! the tree shallow and of bounded size; what its rules cannot see is cut off by the clock.
//!
//! What is left out this way is markup that no reader sees, or the end of a page that is longer than
//! anybody reads; [`Parsed::complete`] tells.

use std::{
    borrow::Cow,
    cell::Cell,
    time::{Duration, Instant},
};

use dom_query::{Document, NodeId};
use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};
use html5ever::{
    buffer_queue::BufferQueue,
    interface::{TokenizerResult, Tracer},
    tendril::StrTendril,
    tokenizer::{StartTag, Tag, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts},
    tree_builder::{TreeBuilder, TreeBuilderOpts},
};

/// Most nodes of a tree. Pages of news and reference have some thousands.
const NODES_MAX: usize = 100_000;
/// Most elements open at once. Browsers stop at about 512 and show pages well.
const OPEN_ELEMENTS_MAX: usize = 256;
/// Most attributes of one element.
const ATTRIBUTES_MAX: usize = 32;
/// Longest value of an attribute that is kept: as long as a URL may be.
const ATTRIBUTE_BYTES_MAX: usize = 2_048;
/// Longest time for one page. Never reached but by pages made for it: those within the other bounds
/// take a small part of it.
const PARSE_MS_MAX: u64 = 2_000;
/// The clock is looked at between pieces of this size.
const PIECE_BYTES: usize = 4 * 1024;
/// Where a charset must be declared within the page, says the HTML standard.
const PRESCAN_BYTES: usize = 1_024;

/// A document, as far as it was read.
pub(super) struct Parsed {
    pub(super) document: Document,
    /// Whether all of the page is in it.
    pub(super) complete: bool,
}

/// Parses a page. Takes at most a little longer than [`PARSE_MS_MAX`].
pub(super) fn parse(html: &str) -> Parsed {
    let end = Instant::now() + Duration::from_millis(PARSE_MS_MAX);
    let options = TreeBuilderOpts { scripting_enabled: false, ..TreeBuilderOpts::default() };
    let sink = Bounded {
        builder: TreeBuilder::new(Document::default(), options),
        full: Cell::new(false),
        deep: Cell::new(false),
        measured: Cell::new(Measured { open: 0, nodes: 0 }),
    };
    let tokenizer = Tokenizer::new(sink, TokenizerOpts::default());
    let queue = BufferQueue::default();

    let mut rest = html;
    while !rest.is_empty() && !tokenizer.sink.full.get() && Instant::now() < end {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
        rest = after;
        queue.push_back(StrTendril::from_slice(piece));
        // Scripts are not run: carry on behind each.
        while !matches!(tokenizer.feed(&queue), TokenizerResult::Done) {}
    }
    tokenizer.end();
    let complete = rest.is_empty() && !tokenizer.sink.full.get();
    Parsed { document: tokenizer.sink.builder.sink, complete }
}

/// Stands between the tokenizer and the tree, and lets through what keeps the tree within bounds.
struct Bounded {
    builder: TreeBuilder<NodeId, Document>,
    /// The tree has all the nodes it may have; nothing more is let through.
    full: Cell<bool>,
    /// As many elements are open as may be, and no end tag has come since that was found.
    deep: Cell<bool>,
    measured: Cell<Measured>,
}

/// How many elements were open when the tree had so many nodes.
#[derive(Clone, Copy)]
struct Measured {
    open: usize,
    nodes: usize,
}

impl TokenSink for Bounded {
    type Handle = NodeId;

    fn process_token(&self, token: Token, line: u64) -> TokenSinkResult<NodeId> {
        if NODES_MAX <= self.builder.sink.tree.len() {
            self.full.set(true);
        }
        match token {
            // Ends the tree, at whatever size.
            Token::EOFToken => self.builder.process_token(token, line),
            _ if self.full.get() => TokenSinkResult::Continue,
            Token::TagToken(tag) if tag.kind == StartTag => {
                if self.is_deep() {
                    TokenSinkResult::Continue
                } else {
                    self.builder.process_token(Token::TagToken(trimmed(tag)), line)
                }
            }
            Token::TagToken(_) => {
                self.deep.set(false);
                self.builder.process_token(token, line)
            }
            // Nobody reads these.
            Token::CommentToken(_) | Token::ParseError(_) => TokenSinkResult::Continue,
            _ => self.builder.process_token(token, line),
        }
    }

    fn end(&self) {
        self.builder.end();
    }

    fn adjusted_current_node_present_but_not_in_html_namespace(&self) -> bool {
        self.builder.adjusted_current_node_present_but_not_in_html_namespace()
    }
}

impl Bounded {
    /// Whether as many elements are open as may be. Counting them takes as long as there are many;
    /// but each comes with a new node, so until enough nodes are new there is no need to count.
    fn is_deep(&self) -> bool {
        if self.deep.get() {
            return true;
        }
        let nodes = self.builder.sink.tree.len();
        let measured = self.measured.get();
        if measured.open + (nodes - measured.nodes) < OPEN_ELEMENTS_MAX {
            return false;
        }
        let count = Count(Cell::new(0));
        self.builder.trace_handles(&count);
        self.measured.set(Measured { open: count.0.get(), nodes });
        self.deep.set(OPEN_ELEMENTS_MAX <= count.0.get());
        self.deep.get()
    }
}

/// Counts what the tree builder holds: open elements, formatting elements to be reopened, and a few
/// more.
struct Count(Cell<usize>);

impl Tracer for Count {
    type Handle = NodeId;

    fn trace_handle(&self, _node: &NodeId) {
        self.0.set(self.0.get() + 1);
    }
}

fn trimmed(mut tag: Tag) -> Tag {
    tag.attrs.truncate(ATTRIBUTES_MAX);
    tag.attrs.retain(|attribute| attribute.value.len() <= ATTRIBUTE_BYTES_MAX);
    tag
}

/// The text of a body, and the name of its encoding: as a byte-order mark says, else the header,
/// else, for HTML, a `meta` element, else what it looks like.
pub(super) fn decode<'a>(body: &'a [u8], charset: Option<&str>, html: bool) -> (Cow<'a, str>, &'static str) {
    let of_label = |label: &str| Encoding::for_label_no_replacement(label.as_bytes());
    let encoding = Encoding::for_bom(body)
        .map(|(encoding, _)| encoding)
        .or_else(|| charset.and_then(of_label))
        .or_else(|| declared_charset(body).filter(|_| html).and_then(|label| of_label(&label)).map(readable))
        .unwrap_or_else(|| if str::from_utf8(body).is_ok() { UTF_8 } else { WINDOWS_1252 });
    let (text, encoding, _) = encoding.decode(body);
    (text, encoding.name())
}

/// A page whose declaration could be read as ASCII is not UTF-16, whatever it declares.
fn readable(declared: &'static Encoding) -> &'static Encoding {
    if declared == UTF_16LE || declared == UTF_16BE { UTF_8 } else { declared }
}

/// The charset that a `meta` element near the start names.
fn declared_charset(body: &[u8]) -> Option<String> {
    let start = String::from_utf8_lossy(&body[..body.len().min(PRESCAN_BYTES)]).to_ascii_lowercase();
    start.split("<meta").skip(1).find_map(|element| {
        let element = element.split('>').next()?;
        let (_, value) = element.split_once("charset")?;
        let value = value.trim_start().strip_prefix('=')?.trim_start();
        let value = value.trim_start_matches(['"', '\'']);
        let label = value.split(['"', '\'', ';', ' ', '\t', '\n', '\r', '/']).next()?;
        (!label.is_empty()).then(|| label.to_owned())
    })
}
