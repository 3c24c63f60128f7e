//! Fetches and analyses a public web page.
