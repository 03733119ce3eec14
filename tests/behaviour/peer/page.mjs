// Drives the page of a peer in headless Chromium. Arguments: the link with the code, the directory
// of screenshots, the file to share, the file to drop, the link of a large file.
import { chromium } from 'playwright-core';
import { strict as assert } from 'node:assert';
import { readFileSync } from 'node:fs';

const [link, shots, toShare, toDrop, slowLink] = process.argv.slice(2);
const address = new URL(link).origin;
const hostile = readFileSync(`${shots}/hostile-name.txt`, 'utf8');

const browser = await chromium.launch({
  executablePath: process.env.CEPA_CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu'],
});
const promises = [];
async function promise(name, check) {
  await check();
  promises.push(name);
  console.log(`ok ${name}`);
}

const problems = [];
const context = await browser.newContext({ viewport: { width: 1100, height: 1200 } });
await context.grantPermissions(['clipboard-read', 'clipboard-write'], { origin: address });
const page = await context.newPage();
page.on('pageerror', (error) => problems.push(String(error)));
page.on('console', (message) => { if (message.type() === 'error') problems.push(message.text()); });
page.on('dialog', (dialog) => { problems.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
page.on('request', (request) => {
  if (!request.url().startsWith(`${address}/`)) problems.push(`asked ${request.url()}`);
});

await promise('without the code there is only the door', async () => {
  const answer = await page.goto(address);
  assert.equal(answer.status(), 401);
  assert.equal(await page.locator('#downloads').count(), 0);
  await page.screenshot({ path: `${shots}/door.png` });
  problems.length = 0;
});

await promise('the code opens one browser, once', async () => {
  await page.goto(link);
  await page.getByText('connected').waitFor();
  assert.equal(new URL(page.url()).search, '', 'the code is not kept in the address');
  const other = await browser.newContext();
  const second = await other.newPage();
  assert.equal((await second.goto(link)).status(), 401);
  await other.close();
});

await promise('the catalogue shows names as text', async () => {
  const entry = page.locator('#catalogue .name').filter({ hasText: '<img' });
  await entry.waitFor();
  const text = await entry.textContent();
  assert.ok(text.startsWith('<img src=x onerror='), text);
  assert.ok(!/[\u202e\u0007]/.test(text), 'what turns the line is replaced');
  assert.equal(await page.locator('main img').count(), 0, 'no markup from names');
  assert.ok(hostile.includes('<img'));
});

await promise('a name typed into the box filters, Enter gets it, a bar fills', async () => {
  await page.locator('#what').fill('titanic');
  await page.waitForFunction(() => document.querySelectorAll('#catalogue li').length === 1);
  await page.keyboard.press('Enter');
  await page.locator('#downloads li.done .name').filter({ hasText: 'titanic' }).waitFor();
  const reason = await page.locator('#downloads li.done .reason').first().textContent();
  assert.ok(reason.startsWith('verified, in '), reason);
});

await promise('a hostile name is got, and stays text in the downloads', async () => {
  await page.locator('#catalogue li').filter({ hasText: '<img' }).getByRole('button').click();
  await page.locator('#downloads li.done .name').filter({ hasText: '<img' }).waitFor();
  assert.equal(await page.locator('main img').count(), 0);
});

await promise('a running download shows rate, time left and circuits, pauses and goes on', async () => {
  await page.locator('#what').fill(slowLink);
  await page.getByRole('button', { name: 'Get', exact: true }).first().click();
  const row = page.locator('#downloads li').filter({ hasText: 'long film' });
  await row.locator('.facts').filter({ hasText: /B\/s · .* left · 1 source/ }).waitFor();
  // The rate counts every verified group, the bar whole chunks: it may still be empty.
  await page.waitForFunction((bar) => bar.value > 0, await row.locator('progress').elementHandle());
  assert.ok(await page.locator('.circuit .hop.exit').first().isVisible());
  await page.screenshot({ path: `${shots}/downloading.png`, fullPage: true });
  await row.getByRole('button', { name: /Pause/ }).click();
  await row.locator('.reason').filter({ hasText: 'paused' }).waitFor();
  const before = await row.locator('progress').evaluate((bar) => bar.value);
  assert.ok(before > 0 && before < 1);
  await row.getByRole('button', { name: /Resume/ }).click();
  await page.waitForFunction((before) =>
    [...document.querySelectorAll('#downloads li')].some((row) =>
      row.textContent.includes('long film') && row.querySelector('progress').value > before), before);
});

await promise('a download that nobody shares says so', async () => {
  const nobody = `cepa:?root=${'ab'.repeat(32)}&size=77&name=lost%20film&key=${'cd'.repeat(32)}`;
  await page.locator('#what').fill(nobody);
  await page.keyboard.press('Enter');
  const row = page.locator('#downloads li').filter({ hasText: 'lost film' });
  await row.locator('.reason').filter({ hasText: 'no source: nobody who is online shares it' }).waitFor();
});

await promise('a broken link is refused in words', async () => {
  await page.locator('#what').fill('cepa:?root=12');
  await page.keyboard.press('Enter');
  await page.locator('#get-message').filter({ hasText: 'expected size= in the link' }).waitFor();
});

await promise('a path is shared, its link is copied', async () => {
  await page.locator('#path').fill(toShare);
  await page.keyboard.press('Enter');
  const row = page.locator('#shares li').filter({ hasText: 'to share' });
  await row.waitFor();
  await row.getByRole('button', { name: /Copy/ }).click();
  await row.getByText('Copied').waitFor();
  const copied = await page.evaluate(() => navigator.clipboard.readText());
  assert.ok(/^cepa:\?root=[0-9a-f]{64}&size=\d+&name=to%20share&key=/.test(copied), copied);
});

await promise('a file that is picked is shared; a wrong path is refused', async () => {
  await page.locator('#pick').setInputFiles(toDrop);
  await page.locator('#shares li').filter({ hasText: 'dropped' }).waitFor();
  await page.locator('#path').fill('relative/path');
  await page.keyboard.press('Enter');
  await page.locator('#share-message').filter({ hasText: 'expected a whole path' }).waitFor();
  await page.locator('#shares li').filter({ hasText: 'dropped' }).getByRole('button', { name: /Stop/ }).click();
  await page.locator('#shares li').filter({ hasText: 'dropped' }).waitFor({ state: 'detached' });
});

await promise('everything works by keyboard', async () => {
  await page.locator('#what').focus();
  const reached = new Set();
  for (let step = 0; step < 60; step += 1) {
    await page.keyboard.press('Tab');
    reached.add(await page.evaluate(() =>
      document.activeElement.getAttribute('aria-label') ?? document.activeElement.id));
  }
  for (const wanted of ['path', 'pick']) assert.ok(reached.has(wanted), `${wanted} of ${[...reached]}`);
  assert.ok([...reached].some((label) => label.startsWith('Remove')));
  assert.ok([...reached].some((label) => label.startsWith('Copy the link')));
});

await promise('other origins and hosts, and requests without the token, change nothing', async () => {
  const cookie = (await context.cookies()).find((one) => one.name === 'cepa-peer');
  assert.ok(cookie.httpOnly && cookie.sameSite === 'Strict');
  const header = `cepa-peer=${cookie.value}`;
  const send = (headers) => fetch(`${address}/api/get`, {
    method: 'POST', headers: { cookie: header, 'content-type': 'application/json', ...headers }, body: '{"what":"titanic"}',
  });
  assert.equal((await send({})).status, 403);
  assert.equal((await send({ origin: 'http://evil.example' })).status, 403);
  assert.equal((await send({ origin: address, 'x-cepa-token': 'guess' })).status, 403);
  assert.equal((await fetch(`${address}/api/state`)).status, 401);
  const state = await page.evaluate(() => fetch('/api/state').then((answer) => answer.headers.get('content-security-policy')));
  assert.ok(state.startsWith("default-src 'none'; script-src 'self'"));
});

await promise('it fits a phone, and the dark', async () => {
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  await page.screenshot({ path: `${shots}/desktop.png`, fullPage: true });
  assert.ok(wide <= 1100);
  await page.setViewportSize({ width: 360, height: 740 });
  await page.emulateMedia({ colorScheme: 'dark' });
  const narrow = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(narrow <= 360, `${narrow} pixels wide`);
  const small = await page.locator('button:visible').evaluateAll((all) =>
    all.filter((one) => one.getBoundingClientRect().height < 40).map((one) => one.textContent));
  assert.deepEqual(small, [], 'buttons are large enough for fingers');
  await page.screenshot({ path: `${shots}/phone-dark.png`, fullPage: true });
});

problems.splice(0, problems.length, ...problems.filter((one) => !/Failed to load resource.*(401|403|422)/.test(one)));
assert.deepEqual(problems, [], 'no script errors, no refused contents, no requests to elsewhere');
console.log(`${promises.length} promises held`);
await browser.close();
