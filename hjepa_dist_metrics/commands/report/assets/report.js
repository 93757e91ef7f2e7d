"use strict";
// Charts of the report: uPlot on the numbers in #data. Hovering shows values at the nearest logged step,
// dragging zooms, a double click shows all, a click on a name hides its line.

const DATA = JSON.parse(document.getElementById("data").textContent);
const PALETTES = {
  light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#222222"],
  dark: ["#5AB4F0", "#FF8A4C", "#3CCB9F", "#E79AC8", "#F0C04A", "#9AD4F5", "#E6E6E6"],
};
const DASHES = [[], [8, 4], [2, 3], [8, 3, 2, 3]];
const charts = [];
let printing = false;

function stored(kind, key, value) {
  try {
    return value === undefined ? window[kind].getItem(key) : window[kind].setItem(key, value);
  } catch {
    return null; // a browser that keeps nothing for files
  }
}

function theme() {
  if (printing) return "light";
  const chosen = document.documentElement.dataset.theme;
  return chosen || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function text(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return Number(value.toPrecision(3)).toExponential();
  return String(Number(value.toPrecision(4)));
}

function points(run, tag) {
  const [steps, values] = DATA.runs[run][tag];
  return [DATA.steps[steps], values];
}

function latest(values) {
  for (let at = (values || []).length - 1; at >= 0; at--) if (values[at] != null) return values[at];
  return null;
}

// On a logarithmic axis the decades alone, where there are two or more.
function ticks(chart, splits) {
  const decades = splits.map((v) => v > 0 && Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-6);
  const sparse = chart.log && decades.filter(Boolean).length > 1;
  return splits.map((v, at) => (v === null || (sparse && !decades[at]) ? "" : text(v)));
}

// The nearest step at which the series has a number: series are logged at different steps.
function nearest(u, series, at) {
  const values = u.data[series];
  if (series === 0 || values[at] != null) return at;
  for (let d = 1; d < values.length; d++) {
    if (values[at - d] != null) return at - d;
    if (values[at + d] != null) return at + d;
  }
  return at;
}

// Text on a halo of the page's colour, legible over grid and curves.
function label(ctx, words, x, y) {
  ctx.save();
  ctx.setLineDash([]);
  ctx.lineWidth = 4 * devicePixelRatio;
  ctx.strokeStyle = css("--page");
  ctx.strokeText(words, x, y);
  ctx.restore();
  ctx.fillText(words, x, y);
}

// Draw within the axes only.
function within(u, draw) {
  u.ctx.save();
  u.ctx.beginPath();
  u.ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
  u.ctx.clip();
  draw(u.ctx, u.bbox, devicePixelRatio);
  u.ctx.restore();
}

// The healthy range, under grid and curves.
function drawBand(u, chart) {
  if (!chart.band) return;
  within(u, (ctx, { left, top, width, height }) => {
    const [low, high] = chart.band;
    const upper = high === null ? top : u.valToPos(high, "y", true);
    const lower = low === null ? top + height : u.valToPos(low, "y", true);
    ctx.fillStyle = css("--healthy-band");
    ctx.fillRect(left, upper, width, lower - upper);
  });
}

// Limits, and the step at which a finding began.
function drawLimits(u, chart) {
  within(u, (ctx, { left, top, width, height }, ratio) => {
    ctx.font = `${11 * ratio}px system-ui, sans-serif`;
    ctx.lineWidth = 1.5 * ratio;
    ctx.setLineDash([6 * ratio, 4 * ratio]);
    for (const line of chart.limits) {
      const y = u.valToPos(line.y, "y", true);
      ctx.strokeStyle = ctx.fillStyle = css(line.kind === "healthy" ? "--healthy" : "--failing");
      ctx.beginPath();
      ctx.moveTo(left, y);
      ctx.lineTo(left + width, y);
      ctx.stroke();
      ctx.textAlign = "right";
      label(ctx, line.label, left + width - 4 * ratio, y < top + 16 * ratio ? y + 13 * ratio : y - 4 * ratio);
    }
    for (const mark of chart.marks) {
      const x = u.valToPos(mark.x, "x", true);
      ctx.strokeStyle = ctx.fillStyle = css("--failing");
      ctx.beginPath();
      ctx.moveTo(x, top);
      ctx.lineTo(x, top + height);
      ctx.stroke();
      const right = x > left + width / 2;
      ctx.textAlign = right ? "right" : "left";
      label(ctx, mark.label, x + (right ? -4 : 4) * ratio, top + height - 6 * ratio);
    }
  });
}

// The y range holds all numbers and all limits.
function range(chart, low, high) {
  const limits = (chart.limits || []).map((line) => line.y);
  const least = Math.min(low ?? Infinity, ...limits), most = Math.max(high ?? -Infinity, ...limits);
  if (!isFinite(least)) return [0, 1];
  if (chart.log) return [least / 1.3, most * 1.3];
  const margin = 0.06 * (most - least) || 0.05 * Math.abs(most) || 1;
  return [least >= 0 && least - margin < 0 ? 0 : least - margin, most + margin];
}

function axis(more) {
  return {
    stroke: () => css("--muted"), grid: { stroke: () => css("--grid"), width: 1 },
    ticks: { show: false }, font: "11px system-ui, sans-serif", ...more,
  };
}

function options(chart, width) {
  const series = chart.series.map((line) => ({
    label: line.name,
    stroke: () => (line.colour < 0 ? css("--failing") : PALETTES[theme()][line.colour % 7]),
    dash: DASHES[line.dash % 4],
    width: line.colour < 0 ? 1.2 : 1.8,
    value: (u, value, index, at) => text(at == null ? latest(u.data[index]) : value),
    points: { size: 5 },
  }));
  return {
    width, height: 230,
    scales: {
      x: { time: false },
      y: { distr: chart.log ? 3 : 1, range: (_, low, high) => range(chart, low, high) },
    },
    axes: [
      axis({ size: 24, label: "step", labelSize: 14, labelGap: -2, labelFont: "11px system-ui, sans-serif" }),
      axis({ size: 58, values: (_, splits) => ticks(chart, splits) }),
    ],
    series: [{ label: "step", value: (u, value) => text(value ?? u.data[0].at(-1)) }, ...series],
    cursor: { sync: { key: "steps", setSeries: false }, drag: { x: true, y: false }, dataIdx: nearest },
    hooks: { drawClear: [(u) => drawBand(u, chart)], draw: [(u) => drawLimits(u, chart)] },
  };
}

function build(figure) {
  const chart = DATA.charts[figure.dataset.chart];
  const box = figure.querySelector(".plot");
  const data = uPlot.join(chart.series.map((line) => points(line.run, line.tag)));
  const u = new uPlot(options(chart, box.clientWidth || 400), data, box);
  const canvas = box.querySelector("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", figure.dataset.alt);
  for (const name of box.querySelectorAll(".u-legend .u-series:not(:first-child) th")) {
    name.tabIndex = 0;
    name.setAttribute("role", "button");
    name.title = "show or hide";
    name.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        name.click();
      }
    });
  }
  figure.uplot = u;
  charts.push(u);
  new ResizeObserver(() => {
    if (box.clientWidth && box.clientWidth !== u.width) u.setSize({ width: box.clientWidth, height: 230 });
  }).observe(box);
}

// A small grey curve in a row of the table of all numbers.
function sparkline(cell) {
  const output = cell.parentNode.querySelector(".at");
  const last = output.textContent;
  const [steps, values] = points(cell.dataset.run, cell.dataset.tag);
  const u = new uPlot({
    width: 170, height: 34, legend: { show: false },
    scales: { x: { time: false }, y: { range: (_, low, high) => range({}, low, high) } },
    axes: [{ show: false }, { show: false }],
    cursor: { y: false, points: { size: 5 }, drag: { x: false, y: false } },
    series: [{}, { stroke: () => css("--muted"), width: 1.3, points: { show: steps.length < 2 } }],
    hooks: {
      setCursor: [(me) => {
        const at = me.cursor.idx;
        output.textContent = at == null ? last : `${text(values[at])} at ${steps[at]}`;
      }],
    },
  }, [steps, values], cell);
  charts.push(u);
}

function openGroup(group) {
  if (!group.open || group.dataset.drawn) return;
  group.dataset.drawn = "1";
  group.querySelectorAll("td.spark").forEach(sparkline);
}

function redraw() {
  charts.forEach((u) => u.redraw(false, true));
}

function chooseTheme(name) {
  document.documentElement.dataset.theme = name;
  redraw();
}

if (stored("localStorage", "hjepa-theme")) chooseTheme(stored("localStorage", "hjepa-theme"));
document.querySelectorAll("figure[data-chart]").forEach(build);
document.querySelectorAll("details.group").forEach((group) => {
  group.addEventListener("toggle", () => openGroup(group));
});
document.getElementById("theme").addEventListener("click", () => {
  const name = theme() === "dark" ? "light" : "dark";
  stored("localStorage", "hjepa-theme", name);
  chooseTheme(name);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => { printing = true; redraw(); });
addEventListener("afterprint", () => { printing = false; redraw(); });
document.querySelectorAll("button.zoom").forEach((button) => {
  button.addEventListener("click", () => button.classList.toggle("open"));
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.querySelectorAll("button.zoom.open").forEach((b) => b.classList.remove("open"));
});
document.getElementById("filter")?.addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  document.querySelectorAll("details.group").forEach((group) => {
    let shown = 0;
    group.querySelectorAll("tr[data-tag]").forEach((row) => {
      row.hidden = !row.dataset.tag.toLowerCase().includes(wanted);
      shown += !row.hidden;
    });
    group.hidden = shown === 0;
    if (wanted && shown) group.open = true;
  });
});

// A live page: it loads itself again, and what was open stays open.
const open = JSON.parse(stored("sessionStorage", "hjepa-open") || "[]");
document.querySelectorAll("details[id]").forEach((part) => { if (open.includes(part.id)) part.open = true; });
addEventListener("pagehide", () => {
  const ids = [...document.querySelectorAll("details[id][open]")].map((part) => part.id);
  stored("sessionStorage", "hjepa-open", JSON.stringify(ids));
});
if (DATA.refresh) setTimeout(() => location.reload(), 1000 * DATA.refresh);
