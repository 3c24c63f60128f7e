//! The pack `url`: what it refuses to reach, what it survives, what it finds.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use dpp::{
    domain::money::UsdMicros,
    pack::{
        Failure, Pack,
        url::{Access, SystemDns, UrlPack},
    },
};
use serde_json::{Value, json};

use super::{
    AMPLE, job, run,
    site::{Names, Reply, Site, gzip_of_zeros},
    wrong_fields,
};

/// As in production.
fn strict() -> UrlPack {
    UrlPack::new(Access::default(), Arc::new(SystemDns))
}

/// As in development: loopback is open.
fn lenient() -> UrlPack {
    UrlPack::new(loopback(), Arc::new(SystemDns))
}

fn loopback() -> Access {
    Access { allow_loopback: true, extra_ports: Vec::new() }
}

async fn fetch(url: &str) -> Result<Value, Failure> {
    run(&lenient(), &json!({ "url": url })).await.map(|product| product.data)
}

async fn fetch_reply(reply: impl Fn() -> Reply + Send + Sync + 'static) -> Result<Value, Failure> {
    let site = Site::start(move |_| reply()).await;
    fetch(&site.url("/")).await
}

async fn failure_of(reply: impl Fn() -> Reply + Send + Sync + 'static) -> &'static str {
    let failure = fetch_reply(reply).await.unwrap_err();
    // Nothing of ours or of our libraries.
    for word in ["127.0.0.1", "os error", "hyper", "reqwest", "rustls", "resolver"] {
        assert!(!failure.detail.contains(word), "{failure:?}");
    }
    failure.reason_code
}

/// One address from each network that is not the public internet, most at an edge.
const NOT_PUBLIC: &[(&str, &str)] = &[
    ("0.0.0.0", "an unspecified address"),
    ("0.255.255.255", "an unspecified address"),
    ("10.0.0.1", "a private address"),
    ("100.64.0.0", "a carrier-grade NAT address"),
    ("100.100.100.200", "a carrier-grade NAT address"),
    ("100.127.255.255", "a carrier-grade NAT address"),
    ("127.0.0.1", "a loopback address"),
    ("127.255.255.254", "a loopback address"),
    ("168.63.129.16", "a cloud metadata address"),
    ("169.254.169.254", "a cloud metadata address"),
    ("169.254.170.2", "a link-local address"),
    ("172.16.0.1", "a private address"),
    ("172.31.255.255", "a private address"),
    ("192.0.0.192", "a protocol assignment"),
    ("192.0.2.1", "a documentation address"),
    ("192.88.99.1", "a 6to4 relay address"),
    ("192.168.255.255", "a private address"),
    ("198.18.0.1", "a benchmarking address"),
    ("198.19.255.255", "a benchmarking address"),
    ("198.51.100.7", "a documentation address"),
    ("203.0.113.7", "a documentation address"),
    ("224.0.0.1", "a multicast address"),
    ("239.255.255.255", "a multicast address"),
    ("240.0.0.1", "a reserved address"),
    ("255.255.255.255", "the broadcast address"),
    ("::", "an unspecified address"),
    ("::1", "a loopback address"),
    ("::7f00:1", "an IPv4-compatible address"),
    ("::ffff:127.0.0.1", "an IPv4-mapped address"),
    ("::ffff:93.184.216.34", "an IPv4-mapped address"),
    ("::ffff:0:127.0.0.1", "an IPv4-translated address"),
    ("64:ff9b::10.0.0.1", "a NAT64 address"),
    ("64:ff9b:1::1", "a NAT64 address"),
    ("100::1", "a discard address"),
    ("2001::1", "a Teredo address"),
    ("2001:2::1", "a benchmarking address"),
    ("2001:20::1", "a protocol assignment"),
    ("2001:db8::1", "a documentation address"),
    ("2002:7f00:1::", "a 6to4 address"),
    ("3fff::1", "a documentation address"),
    ("fd00:ec2::254", "a cloud metadata address"),
    ("fc00::1", "a unique local address"),
    ("fdff::1", "a unique local address"),
    ("fe80::1", "a link-local address"),
    ("febf::1", "a link-local address"),
    ("fec0::1", "a site-local address"),
    ("ff02::1", "a multicast address"),
    ("1fff::1", "a reserved address"),
    ("4000::1", "a reserved address"),
    ("5f00::1", "a reserved address"),
    ("e000::1", "a reserved address"),
];

const PUBLIC: &[&str] = &[
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2001:200::1",
    "2606:4700:4700::1111",
    "2a00:1450:4001:80b::200e",
    "2003::1",
];

fn literal(address: &str) -> String {
    if address.contains(':') { format!("http://[{address}]/") } else { format!("http://{address}/") }
}

#[test]
fn refuses_every_address_that_is_not_public_at_submit() {
    for (address, reason) in NOT_PUBLIC {
        let wrong = wrong_fields(&strict(), &json!({ "url": literal(address) }));
        assert_eq!(wrong[0].pointer, "/url");
        assert!(wrong[0].detail.contains(reason), "{address}: {}", wrong[0].detail);
    }
    for address in PUBLIC {
        let accepted = strict().check(&json!({ "url": literal(address) }));
        assert!(accepted.is_ok(), "{address}: {accepted:?}");
    }
}

#[tokio::test]
async fn refuses_every_address_that_is_not_public_behind_a_name() {
    for (address, _) in NOT_PUBLIC {
        // One bad address among good ones condemns the name; which one is no business of the buyer.
        for answer in [&[*address][..], &["1.1.1.1", *address], &[*address, "2606:4700:4700::1111"]] {
            let pack = UrlPack::new(Access::default(), Names::new(&[answer]));
            let failure = run(&pack, &json!({ "url": "http://a.example/" })).await.unwrap_err();
            assert_eq!(failure.reason_code, "address_not_allowed", "{answer:?}");
            assert!(!failure.detail.contains(address), "{}", failure.detail);
        }
    }
}

#[test]
fn sees_through_odd_spellings() {
    let disguised = [
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://017700000001/",
        "http://127.1/",
        "http://127.0.0.1./",
        "http://①②⑦.⓪.⓪.①/",
        "http://127。0。0。1/",
        "http://%31%32%37.0.0.1/",
        "http:127.0.0.1",
        "http:\\\\127.0.0.1\\",
        "http:///127.0.0.1/",
        " http://127.0.0.1/",
        "http://12\t7.0.0.1/",
        "HTTP://LOCALHOST/",
        "http://localhost./",
        "http://a.localhost/",
        "http://ⓛocalhost/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::127.0.0.1]/",
        "http://[0:0:0:0:0:0:0:1]/",
        "http://[fd00:ec2:0::254]/",
        "http://2852039166/",
        "http://0xa9fea9fe/",
    ];
    for url in disguised {
        let wrong = wrong_fields(&strict(), &json!({ "url": url }));
        assert!(wrong[0].detail.contains("address"), "{url}: {}", wrong[0].detail);
    }
}

#[test]
fn refuses_other_wrong_inputs() {
    let long = format!("http://a.example/{}", "a".repeat(2_048));
    let cases = [
        json!("http://a.example/"),
        json!({}),
        json!({ "url": 7 }),
        json!({ "url": "" }),
        json!({ "url": "a.example/page" }),
        json!({ "url": "//a.example/" }),
        json!({ "url": "ftp://a.example/" }),
        json!({ "url": "file:///etc/passwd" }),
        json!({ "url": "data:text/html,hello" }),
        json!({ "url": "http://" }),
        json!({ "url": "http://./" }),
        json!({ "url": "http://a b/" }),
        json!({ "url": "http://[fe80::1%25eth0]/" }),
        json!({ "url": "http://1.2.3.4.5/" }),
        json!({ "url": "http://user@a.example/" }),
        json!({ "url": "http://:secret@a.example/" }),
        json!({ "url": "http://127.0.0.1@a.example/" }),
        json!({ "url": "http://a.example:8080/" }),
        json!({ "url": "https://a.example:22/" }),
        json!({ "url": "http://1.1.1.1:6379/" }),
        json!({ "url": "http://a.example:99999/" }),
        json!({ "url": long }),
        json!({ "url": "http://a.example/", "max_chars": 0 }),
        json!({ "url": "http://a.example/", "max_chars": 200_001 }),
        json!({ "url": "http://a.example/", "max_chars": 1.5 }),
        json!({ "url": "http://a.example/", "max_chars": "9" }),
        json!({ "uri": "http://a.example/", "max_chars": -1 }),
    ];
    let pack = strict();
    let lines: Vec<_> = cases
        .iter()
        .flat_map(|inputs| {
            let title = inputs.to_string().chars().take(60).collect::<String>();
            let wrong = wrong_fields(&pack, inputs).into_iter();
            wrong.map(move |field| {
                format!("{title:<60} {:<12} {}", format!("{:?}", field.pointer), field.detail)
            })
        })
        .collect();
    insta::assert_snapshot!("refusals", lines.join("\n"));
}

#[test]
fn opens_ports_and_loopback_only_as_set() {
    let accepts = |access: &Access, url: &str| {
        UrlPack::new(access.clone(), Arc::new(SystemDns)).check(&json!({ "url": url })).is_ok()
    };
    let (closed, ports) = (Access::default(), Access { extra_ports: vec![8080], ..Access::default() });
    let urls =
        ["http://a.example:80/", "https://a.example:443/", "http://a.example:443/", "https://1.1.1.1/"];
    assert!(urls.iter().all(|url| accepts(&closed, url)));
    assert!(!accepts(&closed, "http://1.1.1.1:8080/"));
    assert!(accepts(&ports, "http://1.1.1.1:8080/") && accepts(&ports, "http://a.example:8080/"));
    assert!(!accepts(&ports, "http://a.example:8081/") && !accepts(&ports, "http://127.0.0.1:8080/"));

    for url in
        ["http://127.0.0.1:9/", "http://127.9.9.9:65535/", "http://[::1]:1234/", "http://localhost:3000/"]
    {
        assert!(accepts(&loopback(), url), "{url}");
    }
    // Loopback is loopback, and nothing else that is private.
    for (address, reason) in NOT_PUBLIC {
        assert_eq!(accepts(&loopback(), &literal(address)), *reason == "a loopback address", "{address}");
    }
    assert!(!accepts(&loopback(), "http://1.1.1.1:8080/"));
}

#[tokio::test]
async fn closes_odd_ports_once_a_name_turns_out_not_to_be_loopback() {
    let pack = UrlPack::new(loopback(), Names::new(&[&["1.1.1.1"]]));
    let failure = run(&pack, &json!({ "url": "http://a.example:8080/" })).await.unwrap_err();
    assert_eq!(failure.reason_code, "address_not_allowed");
}

#[tokio::test]
async fn follows_no_redirect_out_of_bounds() {
    let private = NOT_PUBLIC.iter().filter(|(_, reason)| *reason != "a loopback address");
    let mut cases: Vec<_> = private.map(|(address, _)| (literal(address), "address_not_allowed")).collect();
    cases.extend([
        ("http://2852039166/latest/meta-data/".to_owned(), "address_not_allowed"),
        ("//10.0.0.1/".to_owned(), "address_not_allowed"),
        ("http://1.1.1.1:22/".to_owned(), "address_not_allowed"),
        ("http://private.example/".to_owned(), "address_not_allowed"),
        ("ftp://a.example/".to_owned(), "redirect_not_allowed"),
        ("file:///etc/passwd".to_owned(), "redirect_not_allowed"),
        ("http://user:secret@a.example/".to_owned(), "redirect_not_allowed"),
        ("http://[oops/".to_owned(), "redirect_not_allowed"),
    ]);
    for (target, reason_code) in cases {
        let to = target.clone();
        let site = Site::start(move |_| Reply::redirect(&to)).await;
        let pack = UrlPack::new(loopback(), Names::new(&[&["10.1.2.3"]]));
        let failure = run(&pack, &json!({ "url": site.url("/") })).await.unwrap_err();
        assert_eq!(failure.reason_code, reason_code, "{target}: {}", failure.detail);
        assert_eq!(site.requests().len(), 1);
    }
}

#[tokio::test]
async fn connects_to_the_address_that_was_judged() {
    // The name means the site once, then something private. One look-up, one answer, one connection.
    let site = Site::start(|_| Reply::html("<p>Here.</p>")).await;
    let url = format!("http://rebind.example:{}/", site.address.port());
    let names = Names::new(&[&["127.0.0.1"], &["10.0.0.1"]]);
    let pack = UrlPack::new(loopback(), Arc::clone(&names) as _);
    assert_eq!(run(&pack, &json!({ "url": url })).await.unwrap().data["text"], "Here.");
    assert_eq!(names.asked(), ["rebind.example"]);
    assert!(site.requests()[0].contains(&format!("host: rebind.example:{}\r\n", site.address.port())));

    // A redirect to the same name is a new look-up, and is judged anew.
    let site = Site::start(|_| Reply::redirect("/next")).await;
    let url = format!("http://rebind.example:{}/", site.address.port());
    let names = Names::new(&[&["127.0.0.1"], &["10.0.0.1"]]);
    let pack = UrlPack::new(loopback(), Arc::clone(&names) as _);
    let failure = run(&pack, &json!({ "url": url })).await.unwrap_err();
    assert_eq!(failure.reason_code, "address_not_allowed");
    assert_eq!((names.asked().len(), site.requests().len()), (2, 1));
}

#[tokio::test]
async fn says_so_when_a_name_means_nothing() {
    for names in [Names::new(&[]), Names::new(&[&[]])] {
        let pack = UrlPack::new(Access::default(), names);
        let failure = run(&pack, &json!({ "url": "http://a.example/" })).await.unwrap_err();
        assert_eq!(failure.reason_code, "fetch_failed");
        assert_eq!(failure.detail, "the host name could not be resolved");
    }
}

#[tokio::test]
async fn follows_redirects_and_tells_of_each() {
    let site = Site::start(|path| match path {
        "/0" => Reply::new(301, &["location: /1"], "moved"),
        "/1" => Reply::new(307, &["location: 2?q=ü#part"], ""),
        "/endless" => Reply::redirect("/endless"),
        path if path.starts_with("/2") => Reply::html("<p>There.</p>"),
        path => panic!("{path}"),
    })
    .await;
    let data = fetch(&site.url("/0")).await.unwrap();
    assert_eq!(data["url"], site.url("/0"));
    assert_eq!(data["final_url"], site.url("/2?q=%C3%BC#part"));
    assert_eq!(
        data["redirects"],
        json!([{ "status": 301, "to": site.url("/1") }, { "status": 307, "to": site.url("/2?q=%C3%BC#part") }])
    );
    assert_eq!(data["text"], "There.");

    let before = site.requests().len();
    assert_eq!(fetch(&site.url("/endless")).await.unwrap_err().reason_code, "too_many_redirects");
    assert_eq!(site.requests().len() - before, 6);
}

#[tokio::test]
async fn asks_as_a_decent_client() {
    let site = Site::start(|_| Reply::html("")).await;
    fetch(&site.url("/")).await.unwrap();
    insta::assert_snapshot!(
        "request",
        site.requests()[0].replace(&site.address.to_string(), "[site]").replace('\r', "")
    );
}

#[tokio::test]
async fn fails_with_stable_codes() {
    let of = |content_type: &'static str| move || Reply::new(200, &[content_type], "body");
    assert_eq!(failure_of(|| Reply::new(404, &["content-type: text/html"], "gone")).await, "http_status");
    assert_eq!(failure_of(|| Reply::new(503, &[], "")).await, "http_status");
    assert_eq!(failure_of(|| Reply::new(302, &[], "")).await, "http_status");
    assert_eq!(failure_of(|| Reply::new(304, &[], "")).await, "http_status");
    assert_eq!(failure_of(of("content-type: application/pdf")).await, "unsupported_content_type");
    assert_eq!(failure_of(of("content-type: text/html-not")).await, "unsupported_content_type");
    assert_eq!(failure_of(of("x: y")).await, "unsupported_content_type");
    let brotli = || Reply::new(200, &["content-type: text/html", "content-encoding: br"], "");
    assert_eq!(failure_of(brotli).await, "unsupported_content_encoding");
    let not_gzip = || Reply::new(200, &["content-type: text/html", "content-encoding: gzip"], "plain");
    assert_eq!(failure_of(not_gzip).await, "fetch_failed");
    assert_eq!(failure_of(|| Reply::raw("SSH-2.0-OpenSSH\r\n")).await, "fetch_failed");
    assert_eq!(failure_of(|| Reply::raw("")).await, "fetch_failed");
    let short = || Reply::new(200, &["content-type: text/html", "content-length: 99"], "short");
    assert_eq!(failure_of(short).await, "fetch_failed");

    // A port where nobody listens any more.
    let site = Site::start(|_| Reply::html("")).await;
    let url = site.url("/");
    drop(site);
    let refused = fetch(&url).await;
    assert!(refused.is_err_and(|failure| failure.reason_code == "fetch_failed"));
    // TLS to a server without it.
    let site = Site::start(|_| Reply::html("")).await;
    let failure = fetch(&site.url("/").replace("http:", "https:")).await.unwrap_err();
    assert_eq!(failure.reason_code, "fetch_failed");
}

#[tokio::test]
async fn stops_reading_at_ten_mebibytes() {
    let limit = 10 * 1024 * 1024;
    let text =
        |size: usize| move || Reply::new(200, &["content-type: text/plain"], vec![b'a'; size]).and_stall();
    assert_eq!(failure_of(text(limit + 1)).await, "page_too_large");

    // A quarter of a gibibyte, in a quarter of a mebibyte.
    let bomb = gzip_of_zeros(256 * 1024 * 1024);
    let reply =
        move || Reply::new(200, &["content-type: text/html", "content-encoding: gzip"], &bomb).and_stall();
    assert_eq!(failure_of(reply).await, "page_too_large");

    let just_right = gzip_of_zeros(limit);
    let data = fetch_reply(move || {
        Reply::new(200, &["content-type: text/plain", "content-encoding: gzip"], &just_right)
    })
    .await
    .unwrap();
    assert_eq!(data["body_bytes"], limit);
}

#[tokio::test]
async fn ends_at_the_deadline() {
    let site = Site::start(|path| match path {
        "/head" => Reply::raw("HTTP/1.1 200 OK\r\n").and_stall(),
        _ => Reply::html("<p>Slow").and_stall(),
    })
    .await;
    for path in ["/head", "/body"] {
        let (mut job, meter) = job(&json!({ "url": site.url(path) }), AMPLE);
        job.deadline = tokio::time::Instant::now() + Duration::from_millis(200);
        let failure = lenient().run(job).await.unwrap_err();
        assert_eq!(failure.reason_code, "timed_out");
        assert!(UsdMicros::constant(5_000) <= meter.used());
    }
}

#[tokio::test]
async fn charges_as_it_reads_and_stops_at_the_cap() {
    let page =
        |size: usize| Site::start(move |_| Reply::new(200, &["content-type: text/plain"], vec![b'a'; size]));
    let unit = 100 * 1024;
    assert_eq!(
        lenient().check(&json!({ "url": "http://a.example/" })).unwrap().at_least,
        UsdMicros::constant(6_000)
    );
    for (size, cost) in [(0, 6_000), (1, 6_000), (unit, 6_000), (unit + 1, 7_000), (10 * unit, 15_000)] {
        let site = page(size).await;
        let (job, meter) = job(&json!({ "url": site.url("/") }), AMPLE);
        lenient().run(job).await.unwrap();
        assert_eq!(meter.used(), UsdMicros::constant(cost), "{size}");
    }

    let site = page(100 * unit).await;
    let (job, meter) = job(&json!({ "url": site.url("/") }), UsdMicros::constant(8_500));
    assert_eq!(lenient().run(job).await.unwrap_err().reason_code, "max_cost_reached");
    assert_eq!(meter.used(), UsdMicros::constant(8_000));
}

#[tokio::test]
async fn reads_charsets_as_browsers_do() {
    let cases: &[(&str, &[u8], &str, &str)] = &[
        ("text/html; charset=utf-8", b"<p>caf\xc3\xa9", "café", "UTF-8"),
        ("text/html; charset=\"ISO-8859-1\"", b"<p>caf\xe9 \x80", "café €", "windows-1252"),
        ("text/html; Charset=shift_jis", b"<p>\x83\x65\x83\x58\x83\x67", "テスト", "Shift_JIS"),
        ("text/html", b"<meta charset=windows-1251><p>\xcf\xf0\xe8", "При", "windows-1251"),
        (
            "text/html",
            b"<META http-equiv=Content-Type content='text/html; charset=koi8-r'><p>\xf0\xd2\xc9",
            "При",
            "KOI8-R",
        ),
        ("text/html", b"<meta charset=utf-16le><p>caf\xc3\xa9", "café", "UTF-8"),
        ("text/html; charset=no-such", b"<p>caf\xc3\xa9", "café", "UTF-8"),
        ("text/html", b"<p>caf\xe9", "café", "windows-1252"),
        ("text/html; charset=windows-1251", b"\xef\xbb\xbf<p>caf\xc3\xa9", "café", "UTF-8"),
        ("text/html", b"\xff\xfe<\0p\0>\0\xe9\0", "é", "UTF-16LE"),
        ("text/plain", b"caf\xc3\xa9", "café", "UTF-8"),
        ("text/html; charset=utf-8", b"<p>bad \xff byte", "bad \u{fffd} byte", "UTF-8"),
    ];
    for (content_type, body, text, charset) in cases {
        let data = fetch_reply(move || Reply::new(200, &[&format!("content-type: {content_type}")], body))
            .await
            .unwrap();
        assert_eq!((data["text"].as_str().unwrap(), data["charset"].as_str().unwrap()), (*text, *charset));
    }
}

#[tokio::test]
async fn takes_an_article_apart() {
    let site = Site::start(|_| Reply::html(include_str!("article.html"))).await;
    let data = fetch(&site.url("/harbour/tide-mill?ref=home")).await.unwrap();
    let snapshot = serde_json::to_string_pretty(&data).unwrap();
    insta::assert_snapshot!("article", snapshot.replace(&site.address.to_string(), "[site]"));
}

#[tokio::test]
async fn cuts_what_is_too_long_and_says_so() {
    let words = "wörd ".repeat(60_000);
    let site = Site::start(move |_| Reply::new(200, &["content-type: text/plain"], &words)).await;
    for (inputs, chars) in
        [(json!({}), 20_000), (json!({ "max_chars": 7 }), 7), (json!({ "max_chars": 200_000 }), 200_000)]
    {
        let mut inputs = inputs;
        inputs["url"] = json!(site.url("/"));
        let data = run(&lenient(), &inputs).await.unwrap().data;
        assert_eq!(data["text"].as_str().unwrap().chars().count(), chars);
        assert_eq!((&data["truncated"], &data["word_count"]), (&json!(true), &json!(60_000)));
        assert_eq!(data["text_source"], "plain");
    }

    let links: String = (0..501)
        .map(|index| format!("<h2>{index}</h2><a href='/{index}#x'>{index}</a><a href=/{index}>"))
        .collect();
    let data = fetch_reply(move || Reply::html(&links)).await.unwrap();
    assert_eq!(data["links"].as_array().unwrap().len(), 500);
    assert_eq!(data["headings"].as_array().unwrap().len(), 200);
    assert_eq!(data["truncated"], true);
}

/// Each of these takes a parser or an extractor that trusts its input minutes, gigabytes or its
/// stack.
#[tokio::test]
async fn survives_hostile_pages() {
    const SIZE: usize = 2 * 1024 * 1024;
    let fill = |piece: &str| piece.repeat(SIZE / piece.len());
    let numbered = |before: &str, after: &str, count: usize| {
        (0..count).map(|index| format!("{before}{index}{after}")).collect::<String>()
    };
    let pages = [
        ("a hundred thousand nested divs", "<div>".repeat(100_000) + "deep"),
        ("nested divs", fill("<div>")),
        ("nested inline elements", fill("<span><i><b>")),
        ("nested tables", fill("<table><tr><td>")),
        ("nested scopes", fill("<div><object></div></object>")),
        ("nested lists and paragraphs", fill("<ul><li><p>x")),
        ("nested headings", fill("<h1>x<div>")),
        ("nested deletions", fill("<del>x<ins>")),
        ("foreign elements", fill("<svg><g>")),
        ("templates", fill("<template>")),
        ("formatting that multiplies", numbered("<b id=", ">", 10_000) + &fill("<p>x")),
        ("misnested formatting", fill("<a><b><i><p>x</a></b></i>")),
        ("many attributes", format!("<p {}>x", numbered("a", " ", SIZE / 8))),
        ("a long attribute", format!("<p class='{}'>x", fill("x y "))),
        ("a title and headings", format!("<title>{}</title>{}", fill("w x "), fill("<h2>y z</h2>"))),
        ("line breaks", fill("<br>x<br> ")),
        ("links", numbered("<a href=/", ">x</a>", SIZE / 20)),
        ("paragraphs", fill("<div><p>Some words, and a comma.</p></div>")),
        ("deep text", "<div>".repeat(200) + &fill("<p>Words, words, words.</p>")),
        ("text", fill("word, ")),
        ("white space", format!("<h1>{}</h1>", fill(" \n"))),
        ("characters to escape", fill("&amp;&notit;&#0;")),
        ("comments", format!("<!--{}", fill("-->x<!--"))),
        ("an open tag", format!("<a href=\"{}", fill("x"))),
        ("scripts", fill("<script>x</script>")),
        ("frames", fill("<frameset><frame>")),
        ("hidden images", fill("<noscript><img src=x></noscript><img>")),
    ];
    let time = async |page: &str| {
        let (page, started) = (page.to_owned(), Instant::now());
        fetch_reply(move || Reply::html(&page)).await.unwrap();
        started.elapsed()
    };
    let honest = fill("<p>Some words, and a <a href=/x>link</a>.</p>");
    let mut honest_took = time(&honest).await;
    for (title, page) in pages {
        // Twice as long at worst; what is read again and again would take a thousand times as long. A machine that
        // did something else meanwhile is asked again.
        let mut took = time(&page).await;
        for _ in 0..3 {
            if took > honest_took * 10 {
                (took, honest_took) = (time(&page).await, time(&honest).await);
            }
        }
        assert!(took <= honest_took * 10, "{title} took {took:?}, an honest page {honest_took:?}");
    }
}

/// What bounds hostile pages leaves large honest ones alone.
#[tokio::test]
async fn reads_long_pages_to_their_end() {
    let section = |index: usize| {
        let paragraph =
            "<p>Some words of an honest text, with a comma &amp; a <a href=\"/x\">link</a>.</p>".repeat(10);
        format!("<section><h2>Part {index}</h2>{paragraph}</section>")
    };
    let sections: String = (0..150).map(section).collect();
    let page = format!(
        "<title>Long</title><body><div><main><article>{sections}<p>The end.</p></article></main></div>"
    );
    let site = Site::start(move |_| Reply::html(&page)).await;
    let inputs = json!({ "url": site.url("/"), "max_chars": 200_000 });
    let data = run(&lenient(), &inputs).await.unwrap().data;
    assert!(data["text"].as_str().unwrap().ends_with("The end."));
    assert_eq!((&data["text_source"], &data["truncated"]), (&json!("article"), &json!(false)));
    assert_eq!(data["headings"][149]["text"], "Part 149");
}
