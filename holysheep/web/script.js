/**
 * The usage in a browser: reads usage.json with the access token and draws what it says.
 *
 * Names of models, apps and the like come from requests, and anybody may have made those: they get
 * into the page as text alone (textContent), never as markup. The token goes into a header alone,
 * never into an address, and is kept for this tab only.
 *
 * @typedef {{key: string, requests: number, cached_requests: number, failed_requests: number,
 *   prompt_tokens: number, completion_tokens: number, total_tokens: number, cost_usd: number,
 *   saved_usd: number, unpriced_requests: number, avg_latency_ms: number}} Row
 * @typedef {{daily_limit_usd: number|null, daily_spent_usd: number,
 *   monthly_limit_usd: number|null, monthly_spent_usd: number}} Budget
 * @typedef {{up_to_ms: number|null, requests: number}} LatencyClass
 * @typedef {{period: string, from: string, to: string, totals: Row, by_day: Row[],
 *   by_model: Row[], by_app: Row[], by_node: Row[], by_status: Row[], latency: LatencyClass[],
 *   budget: Budget|null, missing: string[]}} Usage
 * @typedef {{key: string, direction: "ascending"|"descending"}} Order
 * @typedef {{label: string, value: number, title: string}} Bar
 */

const REFRESH_MS = 60_000;
const TIMEOUT_MS = 30_000;
const MOST_BARS = 8; // of a list; what follows is put together
const MOST_MESSAGE_CHARS = 300; // of what a server says about its error

const LOCALE = document.documentElement.lang;
const SVG = "http://www.w3.org/2000/svg";

/** @type {<E extends HTMLElement>(id: string) => E} */
const byId = (id) => document.getElementById(id);

// --- figures and words -------------------------------------------------------------------------

const number = (options) => new Intl.NumberFormat(LOCALE, options);
const day = (options) => new Intl.DateTimeFormat(LOCALE, { timeZone: "UTC", ...options });

const COUNT = number({});
const SHORT_COUNT = number({ notation: "compact", maximumFractionDigits: 1 });
const PERCENT = number({ style: "percent", maximumFractionDigits: 1 });
const DOLLARS = number({ style: "currency", currency: "USD" });
const CENTS = number({ style: "currency", currency: "USD", maximumFractionDigits: 4 });
const FRACTIONS = number({ style: "currency", currency: "USD", maximumFractionDigits: 6 });
const LEAST_USD = 0.000001;
const LONG_DAY = day({ weekday: "short", day: "numeric", month: "short" });
const SHORT_DAY = day({ day: "numeric", month: "short" });
const SPAN = day({ day: "numeric", month: "short", year: "numeric" });
const TIME = new Intl.DateTimeFormat(LOCALE, { timeStyle: "medium", hourCycle: "h23" });

/** The smaller, the more digits, up to six: cents alone would hide what a call costs. */
function usd(amount) {
  if (amount > 0 && amount < LEAST_USD) {
    return `<${FRACTIONS.format(LEAST_USD)}`;
  }
  return (amount < 0.01 ? FRACTIONS : amount < 1 ? CENTS : DOLLARS).format(amount);
}

const TENTHS = number({ maximumFractionDigits: 1 });
const HUNDREDTHS = number({ maximumFractionDigits: 2 });

/** A span with its unit, which stays on its line. */
function milliseconds(span) {
  if (Math.round(span) >= 1000) {
    return `${HUNDREDTHS.format(span / 1000)}\u00a0s`;
  }
  return `${(span < 10 ? TENTHS : COUNT).format(span < 10 ? span : Math.round(span))}\u00a0ms`;
}

/** A name that can be seen. */
const nameOf = (text) => (text.trim() === "" ? "(blank)" : text);

const ratio = (part, whole) => (whole > 0 ? part / whole : 0);
const plural = (count, noun) => `${COUNT.format(count)} ${noun}${count === 1 ? "" : "s"}`;
const dateOf = (iso) => new Date(`${iso}T00:00:00Z`);

/** @param {Usage} usage */
function spanOf(usage) {
  return SPAN.formatRange(dateOf(usage.from), dateOf(usage.to));
}

/** @type {Record<string, (value: any) => string>} */
const FORMATS = { count: COUNT.format, usd, ms: milliseconds, share: PERCENT.format };

// --- what a browser keeps ----------------------------------------------------------------------

/** A storage that may be switched off: then things are kept as long as the page is open. */
class Kept {
  #memory = new Map();
  #storage;

  constructor(/** @type {() => Storage} */ storage) {
    try {
      this.#storage = storage();
    } catch {
      this.#storage = null;
    }
  }

  get(name) {
    return this.#storage ? this.#storage.getItem(name) : (this.#memory.get(name) ?? null);
  }

  set(name, value) {
    this.#memory.set(name, value);
    try {
      this.#storage?.setItem(name, value);
    } catch {
      this.#storage = null;
    }
  }

  remove(name) {
    this.#memory.delete(name);
    this.#storage?.removeItem(name);
  }
}

const tab = new Kept(() => window.sessionStorage);
const browser = new Kept(() => window.localStorage);
const TOKEN = "holysheep.token";
const PERIOD = "holysheep.period";
const THEME = "holysheep.theme";

// --- elements ----------------------------------------------------------------------------------

function fill(element, ...children) {
  element.replaceChildren(...children);
  return element;
}

function html(tag, attributes = {}, ...children) {
  return fill(withAttributes(document.createElement(tag), attributes), ...children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(withAttributes(document.createElementNS(SVG, tag), attributes), ...children);
}

function withAttributes(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, value);
  }
  return element;
}

/** Show or hide, without touching what is already right: a live region tells changes. */
function show(element, isShown) {
  if (element.hidden === isShown) {
    element.hidden = !isShown;
  }
}

function say(text, element = byId("announcer")) {
  if (element.textContent !== text) {
    element.textContent = text;
  }
}

const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`);

// --- texts of a given width --------------------------------------------------------------------

const pen = document.createElement("canvas").getContext("2d");

function widthOf(text) {
  pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  return pen.measureText(text).width;
}

/** The text with its middle left out where it is too wide: both ends tell model ids apart. */
function fitted(text, width) {
  const characters = Array.from(text.slice(0, 1000));
  if (text.length <= 1000 && widthOf(text) <= width) {
    return text;
  }
  let [fits, tooMany] = [0, characters.length];
  const cut = (count) => {
    const tail = Math.floor(count * 0.4);
    const head = characters.slice(0, count - tail).join("");
    return `${head}…${tail ? characters.slice(-tail).join("") : ""}`;
  };
  while (tooMany - fits > 1) {
    const middle = Math.floor((fits + tooMany) / 2);
    if (widthOf(cut(middle)) <= width) {
      fits = middle;
    } else {
      tooMany = middle;
    }
  }
  return cut(fits);
}

// --- charts ------------------------------------------------------------------------------------

const AXIS_HEIGHT = 22;
const LIST_HEIGHT = 34; // of one bar with its name
const TOP = 8;

/** The values of an axis from 0 to `top`: 1, 2 or 5 times a power of ten apart. */
function ticksFor(top, isWhole) {
  const rough = top / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough);
  const size = isWhole ? Math.max(1, step) : step;
  return Array.from({ length: Math.floor(top / size) + 1 }, (_, index) => index * size);
}

/** How the values of an axis are written: all with the digits that their distance has. */
function tickFormat(ticks, isMoney) {
  if (!isMoney) {
    return SHORT_COUNT.format;
  }
  const digits = Math.min(12, Math.max(0, -Math.floor(Math.log10(ticks[1]) + 1e-9)));
  const fraction = digits === 0 ? 0 : Math.max(2, digits);
  const options = { minimumFractionDigits: fraction, maximumFractionDigits: fraction };
  return number({ style: "currency", currency: "USD", ...options }).format;
}

/**
 * Columns side by side, over the whole width that there is.
 * @param {{bars: Bar[], isMoney: boolean, label: string, height: number}} chart
 */
function columns(chart, width) {
  const { bars, isMoney, height } = chart;
  const most = Math.max(...bars.map((bar) => bar.value));
  const top = (most || 1) * 1.04;
  const ticks = ticksFor(top, !isMoney);
  const format = tickFormat(ticks, isMoney);
  const left = Math.ceil(Math.max(...ticks.map((tick) => widthOf(format(tick))))) + 10;
  const bottom = height - AXIS_HEIGHT;
  const y = (value) => bottom - (value / top) * (bottom - TOP);
  const step = (width - left) / bars.length;
  const thickness = Math.max(1, Math.min(56, step * 0.72));
  const drawing = svg("svg", { role: "img", "aria-label": chart.label, width, height });
  for (const tick of ticks) {
    const line = { class: tick ? "grid" : "base", x1: left, x2: width, y1: y(tick), y2: y(tick) };
    drawing.append(svg("line", line), label(format(tick), left - 8, y(tick) + 4, "end"));
  }
  const widest = Math.max(...bars.map((bar) => widthOf(bar.label))) + 10;
  const every = Math.max(1, Math.ceil(widest / step));
  const lastWidth = widthOf(bars.at(-1).label);
  const lastLabel = Math.min(width - step / 2 - lastWidth / 2, width - lastWidth) - 8;
  bars.forEach((bar, index) => {
    const middle = left + step * (index + 0.5);
    const tall = bar.value > 0 ? Math.max(2, bottom - y(bar.value)) : 0;
    const shape = { x: middle - thickness / 2, y: bottom - tall, width: thickness, height: tall };
    // The whole column reacts to the pointer: a small bar would be hard to hit.
    const area = { class: "hit", x: left + step * index, y: 0, width: step, height: bottom };
    const group = svg("g", { class: "mark", "data-title": bar.title });
    group.append(svg("rect", area), svg("rect", { class: "fill", rx: 2, ...shape }));
    // Counted from the end, so that the newest day has its label; the others leave it its room.
    const isLast = index === bars.length - 1;
    const half = widthOf(bar.label) / 2;
    const x = Math.min(middle, width - half);
    if ((bars.length - 1 - index) % every === 0 && (isLast || x + half < lastLabel)) {
      group.append(label(bar.label, x, height - 6, "middle"));
    }
    drawing.append(group);
  });
  return drawing;
}

/**
 * Bars below each other, each under its name.
 * @param {{bars: (Bar & {figure: string})[], label: string}} chart
 */
function list(chart, width) {
  const height = LIST_HEIGHT;
  const most = Math.max(...chart.bars.map((bar) => bar.value)) || 1;
  const size = { width, height: chart.bars.length * height };
  const drawing = svg("svg", { role: "img", "aria-label": chart.label, ...size });
  chart.bars.forEach((bar, index) => {
    const top = index * height;
    const room = width - widthOf(bar.figure) - 16;
    const long = bar.value > 0 ? Math.max(2, (bar.value / most) * width) : 0;
    const track = { class: "track", x: 0, y: top + 20, width, height: 6, rx: 3 };
    const fillShape = { class: "fill", x: 0, y: top + 20, width: long, height: 6, rx: 3 };
    const group = svg("g", { class: "mark", "data-title": bar.title });
    group.append(
      svg("rect", { class: "hit", x: 0, y: top, width, height }),
      label(fitted(bar.label, room), 0, top + 13, "start", "name"),
      label(bar.figure, width, top + 13, "end", "value"),
      svg("rect", track),
      svg("rect", fillShape),
    );
    drawing.append(group);
  });
  return drawing;
}

function label(text, x, y, anchor, kind = "tick") {
  return svg("text", { class: kind, x, y, "text-anchor": anchor }, text);
}

/** A chart in its panel, drawn again when the panel's width changes. */
class Chart {
  #section;
  #width = 0;
  #draw = null;
  #summary = "";

  constructor(id) {
    this.#section = byId(id);
    const drawing = this.#find(".drawing");
    new ResizeObserver(() => this.#redraw()).observe(drawing);
    drawing.addEventListener("pointermove", (event) => {
      const mark = event.target.closest("[data-title]");
      this.#find(".readout").textContent = mark ? mark.dataset.title : this.#summary;
    });
    drawing.addEventListener("pointerleave", () => {
      this.#find(".readout").textContent = this.#summary;
    });
  }

  /** @param {(width: number) => SVGElement} draw */
  update(title, summary, draw) {
    this.#summary = summary;
    this.#find("h2").textContent = title;
    this.#find(".readout").textContent = summary;
    this.#draw = draw;
    this.#width = 0;
    this.#redraw();
  }

  clear() {
    this.#draw = null;
    for (const part of ["h2", ".readout", ".drawing"]) {
      fill(this.#find(part));
    }
  }

  #redraw() {
    const drawing = this.#find(".drawing");
    const width = drawing.clientWidth;
    if (this.#draw && width > 0 && width !== this.#width) {
      this.#width = width;
      fill(drawing, this.#draw(width));
    }
  }

  #find(selector) {
    return this.#section.querySelector(selector);
  }
}

const charts = Object.fromEntries(
  ["days", "models", "apps", "latency"].map((id) => [id, new Chart(id)]),
);

/** What the bars measure: the spend, or the requests where nothing has a known cost. */
function measureOf(/** @type {Usage} */ usage) {
  return usage.totals.cost_usd > 0
    ? { key: "cost_usd", title: "Spend", format: usd, isMoney: true }
    : { key: "requests", title: "Requests", format: COUNT.format, isMoney: false };
}

const inTable = (group) => `All figures are in the table below, under “${group}”.`;

function drawDays(/** @type {Usage} */ usage) {
  const measure = measureOf(usage);
  const known = new Map(usage.by_day.map((row) => [row.key, row]));
  const bars = daysOf(usage).map((iso) => {
    const row = known.get(iso);
    const value = row ? row[measure.key] : 0;
    const date = dateOf(iso);
    const requests = plural(row ? row.requests : 0, "request");
    const title = `${LONG_DAY.format(date)}: ${row ? usd(row.cost_usd) : usd(0)}, ${requests}`;
    return { label: SHORT_DAY.format(date), value, title, date };
  });
  const most = bars.reduce((best, bar) => (bar.value > best.value ? bar : best));
  const peak = `${measure.format(most.value)} on ${LONG_DAY.format(most.date)}`;
  const summary = bars.length > 1 ? `${plural(bars.length, "day")}, at most ${peak}` : peak;
  const text = `Bar chart of the ${measure.title.toLowerCase()} per day: ${summary}. ${inTable("Day")}`;
  const chart = { bars, isMoney: measure.isMoney, label: text, height: bars.length > 1 ? 190 : 120 };
  charts.days.update(`${measure.title} per day`, summary, (width) => columns(chart, width));
}

function daysOf(/** @type {Usage} */ usage) {
  const days = [];
  const date = dateOf(usage.from);
  // A year at most: a wrong date must not make a chart without end.
  for (; date <= dateOf(usage.to) && days.length < 366; date.setUTCDate(date.getUTCDate() + 1)) {
    days.push(date.toISOString().slice(0, 10));
  }
  return days;
}

/** @param {Row[]} rows */
function drawList(usage, rows, noun, chart) {
  const measure = measureOf(usage);
  const whole = usage.totals[measure.key];
  const bar = (name, value, requests) => {
    const figure = `${measure.format(value)} · ${PERCENT.format(ratio(value, whole))}`;
    return { label: name, value, figure, title: `${name}: ${plural(requests, "request")}` };
  };
  const ordered = rows.toSorted((a, b) => b[measure.key] - a[measure.key]);
  const shown = ordered.slice(0, ordered.length > MOST_BARS ? MOST_BARS - 1 : MOST_BARS);
  const rest = ordered.slice(shown.length);
  const bars = shown.map((row) => bar(nameOf(row.key), row[measure.key], row.requests));
  if (rest.length) {
    const sum = (key) => rest.reduce((total, row) => total + row[key], 0);
    bars.push(bar(`${COUNT.format(rest.length)} more`, sum(measure.key), sum("requests")));
  }
  const summary = plural(rows.length, noun);
  const first = bars[0] ? `, first ${bars[0].label} with ${bars[0].figure}` : "";
  const group = noun[0].toUpperCase() + noun.slice(1);
  const text = `Bar chart of the ${measure.title.toLowerCase()} per ${noun}: ${summary}${first}. ${inTable(group)}`;
  charts[chart].update(`${measure.title} per ${noun}`, summary, (width) =>
    list({ bars, label: text }, width),
  );
}

function drawLatency(/** @type {Usage} */ usage) {
  const rows = latencyRows(usage);
  const bars = rows.map((row) => ({
    label: row.tick,
    value: row.requests,
    title: `${row.key}: ${plural(row.requests, "request")}, ${PERCENT.format(row.share)}`,
  }));
  const half = rows.find((row) => row.cumulative_share >= 0.5);
  const nearly = rows.find((row) => row.cumulative_share >= 0.95);
  const summary = half ? `Half ${half.within}, 95% ${nearly.within}` : "No request was measured";
  const text = `Histogram of the latency of all requests: ${summary}. ${inTable("Latency")}`;
  // As high as the lists beside it.
  const most = Math.max(usage.by_model.length, usage.by_app.length);
  const height = LIST_HEIGHT * Math.max(5, Math.min(most, MOST_BARS));
  const chart = { bars, isMoney: false, label: text, height };
  charts.latency.update("Latency", summary, (width) => columns(chart, width));
}

/** The classes of the latency as rows of a table. */
function latencyRows(/** @type {Usage} */ usage) {
  const whole = usage.latency.reduce((sum, each) => sum + each.requests, 0);
  let below = 0;
  let last = 0;
  return usage.latency.map(({ up_to_ms: bound, requests }, index) => {
    below += requests;
    const text = milliseconds(bound ?? last);
    last = bound ?? last;
    return {
      key: bound === null ? `over ${text}` : `up to ${text}`,
      order: index,
      tick: bound === null ? `>${text}` : text,
      within: bound === null ? `over ${text}` : `within ${text}`,
      requests,
      share: ratio(requests, whole),
      cumulative_share: ratio(below, whole),
    };
  });
}

// --- cards -------------------------------------------------------------------------------------

function card(id, figure, note, kind = "") {
  const element = byId(id);
  element.dataset.kind = kind;
  element.classList.toggle("long", figure.length > 9);
  element.querySelector(".figure").textContent = figure;
  element.querySelector(".note").textContent = note;
  return element;
}

function drawCards(/** @type {Usage} */ usage) {
  const { totals, budget } = usage;
  show(byId("budget"), budget !== null);
  if (budget) {
    drawBudget("daily", budget.daily_spent_usd, budget.daily_limit_usd);
    drawBudget("monthly", budget.monthly_spent_usd, budget.monthly_limit_usd);
  }
  byId("totals-title").textContent = chosen("period").parentElement.textContent.trim();
  const each = totals.requests ? `${usd(totals.cost_usd / totals.requests)} per request` : "";
  card("cost", usd(totals.cost_usd), each);
  const tokens = `${SHORT_COUNT.format(totals.total_tokens)} tokens`;
  const pace = totals.requests ? ` · avg\u00a0${milliseconds(totals.avg_latency_ms)}` : "";
  card("requests", COUNT.format(totals.requests), tokens + pace);
  const hits = `${COUNT.format(totals.cached_requests)} from the cache`;
  card("hit-rate", PERCENT.format(ratio(totals.cached_requests, totals.requests)), hits);
  const without = `${usd(totals.cost_usd + totals.saved_usd)} without cache`;
  card("saved", usd(totals.saved_usd), without);
  card("failures", COUNT.format(totals.failed_requests), failuresNote(usage), failuresKind(totals));
}

const failuresKind = (totals) => (totals.failed_requests > 0 ? "bad" : "");

function failuresNote({ totals, by_status: statuses }) {
  const share = `${PERCENT.format(ratio(totals.failed_requests, totals.requests))} of requests`;
  const failed = statuses.filter((row) => row.key !== "ok");
  if (!failed.length) {
    return share;
  }
  const most = failed.reduce((best, row) => (row.requests > best.requests ? row : best));
  return `${share}, most: ${nameOf(most.key).slice(0, 60)}`;
}

function drawBudget(id, spent, limit) {
  if (limit === null) {
    card(id, usd(spent), "no limit").querySelector(".meter")?.remove();
    return;
  }
  const share = limit > 0 ? spent / limit : 1;
  const isReached = share >= 1;
  const told = `${PERCENT.format(share)} of ${usd(limit)}`;
  const kind = isReached ? "bad" : share >= 0.8 ? "close" : "";
  const element = card(id, usd(spent), isReached ? `${told}: limit reached` : told, kind);
  let meter = element.querySelector(".meter");
  if (!meter) {
    meter = html("div", { class: "meter", role: "meter", "aria-valuemin": 0 }, html("span"));
    element.querySelector(".figure").after(html("dd", {}, meter));
  }
  withAttributes(meter, {
    "aria-label": element.querySelector("dt").textContent,
    "aria-valuemax": 100,
    "aria-valuenow": Math.round(Math.min(share, 1) * 100),
    "aria-valuetext": told,
  });
  meter.firstElementChild.style.inlineSize = `${Math.min(share, 1) * 100}%`;
}

function drawNotes(/** @type {Usage} */ usage) {
  const notes = [...usage.missing];
  const { unpriced_requests: unpriced, requests } = usage.totals;
  if (unpriced > 0) {
    const part = unpriced === requests ? "" : ` of ${COUNT.format(requests)}`;
    notes.unshift(
      `${COUNT.format(unpriced)}${part} request${requests === 1 ? "" : "s"} went to models whose ` +
        "price is not known, and count as $0.00. Price overrides in the settings can change that.",
    );
  }
  const items = notes.map((note) => html("li", {}, note));
  fill(byId("notes"), ...items);
  show(byId("notes"), notes.length > 0);
}

// --- tables ------------------------------------------------------------------------------------

/** @type {Map<string, Order>} */
const orders = new Map();

/** As the server orders them: days ascend, of the rest what cost most comes first. */
function orderOf(group) {
  const usual = ["day", "latency"].includes(group)
    ? { key: "key", direction: "ascending" }
    : { key: "cost_usd", direction: "descending" };
  return orders.get(group) ?? usual;
}

const byName = new Intl.Collator(LOCALE, { numeric: true });

/** The rows in an order; equal ones stay as the server has them. */
function sorted(rows, { key, direction }) {
  const sign = direction === "ascending" ? 1 : -1;
  const compared = (a, b) => {
    if (key !== "key") {
      return a[key] - b[key];
    }
    return "order" in a ? a.order - b.order : byName.compare(a.key, b.key);
  };
  return rows.toSorted((a, b) => sign * compared(a, b));
}

function drawTable(/** @type {Usage} */ usage) {
  const group = chosen("group").value;
  const isLatency = group === "latency";
  const table = byId(isLatency ? "latency-table" : "usage-table");
  show(byId("usage-table"), !isLatency);
  show(byId("latency-table"), isLatency);
  const heads = [...table.tHead.rows[0].cells];
  const name = chosen("group").parentElement.textContent.trim();
  heads[0].firstElementChild.textContent = name;
  table.caption.textContent = `Usage by ${name.toLowerCase()}, ${spanOf(usage)}`;
  const order = orderOf(group);
  for (const head of heads) {
    head.setAttribute("aria-sort", head.dataset.key === order.key ? order.direction : "none");
  }
  const rows = isLatency ? latencyRows(usage) : usage[`by_${group}`];
  fill(table.tBodies[0], ...sorted(rows, order).map((row) => tableRow(row, heads)));
  fill(table.tFoot, tableRow(isLatency ? latencyTotal(rows) : usage.totals, heads, "Total"));
}

function latencyTotal(rows) {
  const requests = rows.reduce((sum, row) => sum + row.requests, 0);
  const share = requests ? 1 : 0;
  return { key: "", requests, share, cumulative_share: share };
}

function tableRow(row, heads, name = nameOf(row.key)) {
  const cells = heads.map((head) => {
    const { key, kind } = head.dataset;
    if (kind === "name") {
      // A name in a right-to-left script must not turn its neighbours round.
      const text = html("bdi", { class: "name", title: name }, name);
      return html("th", { scope: "row" }, text);
    }
    const value = row[key];
    const look = value === 0 ? "none" : key === "failed_requests" ? "bad" : "";
    return html("td", look ? { class: look } : {}, FORMATS[kind](value));
  });
  return html("tr", {}, ...cells);
}

function sortBy(head) {
  const group = chosen("group").value;
  const { key } = head.dataset;
  const current = orderOf(group);
  const opposite = { ascending: "descending", descending: "ascending" };
  const first = key === "key" ? "ascending" : "descending"; // of figures the largest
  const direction = current.key === key ? opposite[current.direction] : first;
  orders.set(group, { key, direction });
  drawTable(state.usage);
  say(`Sorted by ${head.textContent}, ${direction}`);
}

// --- the page ----------------------------------------------------------------------------------

const state = {
  /** @type {Usage|null} */ usage: null,
  /** @type {AbortController|null} */ request: null,
  /** When the last attempt ended, in the time of `Date.now`. */ askedAt: 0,
  timer: 0,
};

function draw(/** @type {Usage} */ usage) {
  const isEmpty = usage.totals.requests === 0;
  byId("span").textContent = spanOf(usage);
  drawCards(usage);
  drawNotes(usage);
  const empty = `No requests ${usage.from === usage.to ? "on" : "from"} ${spanOf(usage)}.`;
  byId("empty").textContent = isEmpty ? empty : "";
  show(byId("empty"), isEmpty);
  show(byId("details"), !isEmpty);
  show(byId("figures"), true); // before the charts: they are as wide as their panels
  if (!isEmpty) {
    drawDays(usage);
    drawList(usage, usage.by_model, "model", "models");
    drawList(usage, usage.by_app, "app", "apps");
    drawLatency(usage);
    drawTable(usage);
  }
}

/** Take every figure out of the page. */
function clear() {
  state.usage = null;
  show(byId("figures"), false);
  show(byId("notes"), false);
  for (const chart of Object.values(charts)) {
    chart.clear();
  }
  for (const part of document.querySelectorAll(".figure, .note, #notes, tbody, tfoot, caption")) {
    fill(part);
  }
  for (const meter of document.querySelectorAll(".meter")) {
    meter.parentElement.remove();
  }
  for (const id of ["span", "updated", "empty"]) {
    byId(id).textContent = "";
  }
}

// --- asking the server -------------------------------------------------------------------------

/** What went wrong, as a sentence. `isRefused`: the token is not the right one. */
class Failure extends Error {
  constructor(message, isRefused = false) {
    super(message);
    this.isRefused = isRefused;
  }
}

/** @returns {Promise<Usage>} */
async function ask(token, period, signal) {
  const response = await reached(token, period, signal);
  if (response.status === 401) {
    throw new Failure("This is not the access token.", true);
  }
  const text = await bodyOf(response, signal);
  if (!response.ok) {
    throw new Failure(`The server answered with status ${response.status}${saidIn(text)}`);
  }
  const usage = jsonOf(text);
  if (!isUsage(usage)) {
    throw new Failure("The server answered with something that is no usage.");
  }
  return usage;
}

async function reached(token, period, signal) {
  const headers = headersWith(token);
  const address = `usage.json?${new URLSearchParams({ period })}`;
  try {
    // A redirection is not followed: the token is for this server alone.
    return await fetch(address, { headers, signal, cache: "no-store", redirect: "error" });
  } catch (error) {
    throw failureOf(error, signal);
  }
}

async function bodyOf(response, signal) {
  try {
    return await response.text();
  } catch (error) {
    throw failureOf(error, signal);
  }
}

function failureOf(error, signal) {
  if (signal.aborted) {
    return signal.reason instanceof Failure ? signal.reason : error;
  }
  const sentence = navigator.onLine ? "The server cannot be reached." : "This device is offline.";
  return new Failure(sentence);
}

function headersWith(token) {
  try {
    return new Headers({ Accept: "application/json", Authorization: `Bearer ${token}` });
  } catch {
    // A header holds Latin letters only, so that no token has others.
    throw new Failure("This is not the access token.", true);
  }
}

function jsonOf(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** What a server says about its error, in the form of OpenAI's or Dify's errors. */
function saidIn(text) {
  const body = jsonOf(text);
  const message = body?.error?.message ?? body?.message ?? body?.error;
  const isText = typeof message === "string" && message.trim() !== "";
  return isText ? `: ${message.trim().slice(0, MOST_MESSAGE_CHARS)}` : ".";
}

function isUsage(value) {
  const lists = ["by_day", "by_model", "by_app", "by_node", "by_status", "latency", "missing"];
  return Boolean(value?.totals) && "budget" in value && lists.every((k) => Array.isArray(value[k]));
}

/** Read the usage and show it. `isAsked`: somebody waits for it, so that the end is told. */
async function refresh({ isAsked = true } = {}) {
  const token = tab.get(TOKEN);
  if (!token) {
    return;
  }
  state.request?.abort();
  clearTimeout(state.timer);
  const request = new AbortController();
  state.request = request;
  const late = new Failure(`The server has not answered within ${TIMEOUT_MS / 1000} seconds.`);
  const timer = setTimeout(() => request.abort(late), TIMEOUT_MS);
  busy(true);
  try {
    const usage = await ask(token, chosen("period").value, request.signal);
    if (state.request === request) {
      succeed(usage, isAsked);
    }
  } catch (error) {
    if (state.request === request) {
      fail(error);
    }
  } finally {
    clearTimeout(timer);
    if (state.request === request) {
      state.request = null;
      busy(false);
      state.askedAt = Date.now();
      schedule();
    }
  }
}

function busy(isBusy) {
  byId("dashboard").setAttribute("aria-busy", String(isBusy));
  document.body.classList.toggle("busy", isBusy);
  show(byId("loading"), isBusy && state.usage === null);
  if (isBusy && state.usage === null) {
    say("Reading the usage");
  }
}

function succeed(usage, isAsked) {
  enter();
  state.usage = usage;
  show(byId("fault"), false);
  draw(usage);
  byId("updated").textContent = `Updated ${TIME.format(new Date())}`;
  if (isAsked) {
    const { requests, cost_usd: cost } = usage.totals;
    say(`Usage of ${spanOf(usage)}: ${plural(requests, "request")}, ${usd(cost)}`);
  }
}

function fail(error) {
  if (!(error instanceof Failure)) {
    console.error(error);
  }
  if (error.isRefused) {
    const wasIn = state.usage !== null;
    leave(wasIn ? "The access token is not accepted any more." : error.message);
    return;
  }
  enter();
  // What is there stays, unless it is about another period than the one that is chosen.
  if (state.usage && state.usage.period !== chosen("period").value) {
    clear();
  }
  const sentence = error instanceof Failure ? error.message : "The usage cannot be shown.";
  const stays = state.usage ? " The figures are those of before." : "";
  say(sentence + stays, byId("fault").querySelector("p"));
  show(byId("fault"), true);
  say("");
}

/** The next reading, a minute after the last one, and only while somebody can see it. */
function schedule() {
  clearTimeout(state.timer);
  if (document.visibilityState === "visible" && tab.get(TOKEN) && !state.request) {
    const left = state.askedAt + REFRESH_MS - Date.now();
    const wait = Math.min(Math.max(0, left), REFRESH_MS); // a clock may be put back
    state.timer = setTimeout(() => refresh({ isAsked: false }), wait);
  }
}

// --- in and out --------------------------------------------------------------------------------

function enter() {
  const hadForm = !byId("sign-in").hidden;
  show(byId("sign-in"), false);
  show(byId("dashboard"), true);
  show(byId("sign-out"), true);
  byId("token").value = "";
  if (hadForm) {
    byId("content").focus(); // what had the focus is hidden now
  }
}

/** Forget the token and all figures, and ask for a token again. */
function leave(message = "") {
  const request = state.request;
  state.request = null;
  request?.abort();
  clearTimeout(state.timer);
  tab.remove(TOKEN);
  busy(false);
  clear();
  show(byId("fault"), false);
  show(byId("dashboard"), false);
  show(byId("sign-out"), false);
  show(byId("sign-in"), true);
  refuse(message);
}

function refuse(message) {
  const field = byId("token");
  say("");
  say(message, byId("token-message"));
  field.setAttribute("aria-invalid", String(message !== ""));
  field.focus();
  field.select();
}

function signIn(event) {
  event.preventDefault();
  const token = byId("token").value.trim();
  if (!token) {
    refuse("Enter the access token.");
    return;
  }
  say("", byId("token-message"));
  tab.set(TOKEN, token);
  refresh();
}

function signOut() {
  leave();
  say("Signed out");
}

// --- light and dark ----------------------------------------------------------------------------

const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (browser.get(THEME) ?? (systemIsDark.matches ? "dark" : "light")) === "dark";

function drawTheme() {
  const theme = browser.get(THEME);
  if (theme) {
    document.documentElement.dataset.theme = theme;
  } else {
    delete document.documentElement.dataset.theme;
  }
  byId("theme").setAttribute("aria-pressed", String(isDark()));
}

/** Back to what the system says means to follow the system again. */
function switchTheme() {
  const wanted = isDark() ? "light" : "dark";
  if (wanted === (systemIsDark.matches ? "dark" : "light")) {
    browser.remove(THEME);
  } else {
    browser.set(THEME, wanted);
  }
  drawTheme();
}

// --- start -------------------------------------------------------------------------------------

function listen() {
  byId("sign-in").addEventListener("submit", signIn);
  byId("sign-out").addEventListener("click", signOut);
  byId("refresh").addEventListener("click", () => refresh());
  byId("fault").querySelector("button").addEventListener("click", () => refresh());
  byId("theme").addEventListener("click", switchTheme);
  byId("period").addEventListener("change", () => {
    tab.set(PERIOD, chosen("period").value);
    refresh();
  });
  byId("group").addEventListener("change", () => drawTable(state.usage));
  for (const head of document.querySelectorAll("thead th")) {
    head.firstElementChild.addEventListener("click", () => sortBy(head));
  }
  systemIsDark.addEventListener("change", drawTheme);
  document.addEventListener("visibilitychange", schedule);
  window.addEventListener("online", () => refresh({ isAsked: false }));
}

function start() {
  show(byId("scriptless"), false);
  drawTheme();
  listen();
  const period = [...document.querySelectorAll("input[name=period]")].find(
    (input) => input.value === tab.get(PERIOD),
  );
  if (period) {
    period.checked = true;
  }
  if (tab.get(TOKEN)) {
    enter();
    refresh();
  } else {
    leave();
  }
}

start();
