// Renders /docs and /redoc of a running server in headless Chromium, and takes a picture of each. Fails where
// one shows nothing, or where a request for anything elsewhere is made and not stopped by the page's policy.
//
//     npm install --no-save playwright-core && node .ci/contract/pages.mjs http://127.0.0.1:8000 DIRECTORY
//
// Chromium is where CHROMIUM says, else /usr/bin/chromium. Not part of CI: it is large.
import { chromium } from "playwright-core";

const [base, directory = "."] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
});
for (const [path, text] of [["docs", "Buys a run"], ["redoc", "Buys a run"]]) {
  const page = await browser.newPage({ viewport: { width: 1280, height: 1000 } });
  const wrong = [];
  const ours = (url) => url.startsWith(base) || url.startsWith("data:") || url.startsWith("blob:");
  page.on("pageerror", (error) => wrong.push(String(error)));
  page.on("requestfinished", (request) => ours(request.url()) || wrong.push(`it left: ${request.url()}`));
  page.on("requestfailed", (request) => request.failure().errorText === "csp" || wrong.push(`failed: ${request.url()}`));
  await page.goto(`${base}/${path}`, { waitUntil: "networkidle" });
  await page.getByText(text).first().waitFor({ state: "attached", timeout: 20_000 });
  await page.screenshot({ path: `${directory}/${path}.png` });
  if (wrong.length) throw new Error(`/${path}: ${wrong.join("; ")}`);
  console.log(`/${path} renders, and asks nobody else`);
}
await browser.close();
