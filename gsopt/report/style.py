"""How a report looks, light and dark, and what it does under the pointer. Nothing is loaded from anywhere."""

CSS = """
:root { color-scheme: light dark; --bg: #f6f7f9; --card: #fff; --text: #1b1f27; --dim: #667085;
  --edge: #e3e6ec; --grid: #eceef2; --c0: #2f6fde; --c1: #e8643c; --c2: #1f9d6b; --c3: #b355d6; --c4: #d69a00;
  --c5: #0d9bb5; --c6: #d13a6b; --c7: #6b7a3a; }
@media (prefers-color-scheme: dark) { :root { --bg: #101319; --card: #181c24; --text: #e7eaf0; --dim: #97a1b3;
  --edge: #2a303b; --grid: #252b35; --c0: #6ea2ff; --c1: #ff8a63; --c2: #4cc995; --c3: #cf8cec; --c4: #f0bd45;
  --c5: #4cc6dd; --c6: #ff7aa2; --c7: #b3c277; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.02em; }
h2 { font-size: 19px; margin: 44px 0 12px; letter-spacing: -0.01em; }
h3 { font-size: 14px; margin: 0; font-weight: 600; }
.sub, .note { color: var(--dim); margin: 0; }
.note { font-size: 13px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 14px;
  margin: 24px 0 0; }
.tile, .card { background: var(--card); border: 1px solid var(--edge); border-radius: 12px; }
.tile { padding: 14px 18px; }
.tile b { display: block; font-size: 25px; line-height: 1.25; letter-spacing: -0.02em; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.tile b small { font-size: 14px; color: var(--dim); font-weight: 500; margin-left: 3px; }
.tile span { color: var(--dim); font-size: 13px; }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); gap: 14px; }
.grid2 .view { margin: 0; }
.grid3 { display: grid; grid-template-columns: repeat(auto-fit, minmax(270px, 1fr)); gap: 14px; }
.card { margin: 0; padding: 14px 16px 10px; min-width: 0; position: relative; }
.card svg { display: block; width: 100%; height: auto; margin-top: 6px; overflow: visible; }
.gridline, line.grid { stroke: var(--grid); }
line.cursor { stroke: var(--dim); stroke-dasharray: 3 3; }
.tick { fill: var(--dim); font-size: 11px; font-variant-numeric: tabular-nums; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.faint { opacity: 0.22; stroke-width: 1; }
rect.bar { fill: var(--c0); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12.5px; color: var(--dim);
  min-height: 20px; }
.key { white-space: nowrap; }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px; }
.tip { position: absolute; pointer-events: none; background: var(--card); border: 1px solid var(--edge);
  border-radius: 8px; padding: 6px 10px; font-size: 12px; box-shadow: 0 4px 16px #0003; white-space: nowrap;
  font-variant-numeric: tabular-nums; z-index: 2; }
.grid2 + .scroll, .grid3 + .scroll { margin-top: 14px; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--edge); border-radius: 12px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 16px; text-align: right; border-top: 1px solid var(--grid); font-weight: 400;
  white-space: nowrap; }
td { overflow-wrap: anywhere; }
thead th { border-top: 0; color: var(--dim); font-size: 12.5px; }
th:first-child { text-align: left; }
table.settings td, table.settings th { text-align: left; white-space: normal; }
table.settings th:first-child { width: 34%; }
code { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
details { margin-top: 12px; } summary { cursor: pointer; color: var(--dim); font-size: 14px; padding: 4px 0; }
.view { margin: 0 0 14px; padding: 12px 16px 14px; }
.view .head { display: flex; justify-content: space-between; gap: 16px; flex-wrap: wrap; font-size: 13.5px;
  margin-bottom: 8px; }
.view .row { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(140px, 280px); gap: 8px;
  overflow-x: auto; }
.view figure { margin: 0; } .view img { width: 100%; display: block; border-radius: 6px; background: #000; }
.view figcaption { font-size: 12.5px; color: var(--dim); padding-top: 4px; display: flex;
  justify-content: space-between; gap: 8px; }
.scale { display: flex; align-items: center; gap: 8px; color: var(--dim); font-size: 12.5px;
  margin: 0 0 12px; }
.scale i { width: 150px; height: 10px; border-radius: 5px; border: 1px solid var(--edge);
  background: linear-gradient(90deg, #000, #f00 33.3%, #ff0 66.7%, #fff); }
.bar-row { background: var(--card); border: 1px solid var(--edge); border-radius: 12px; padding: 14px 16px;
  margin-bottom: 12px; }
.stages { display: flex; height: 22px; border-radius: 6px; overflow: hidden; margin-bottom: 8px; gap: 1px; }
.stages i { display: block; min-width: 2px; }
.bar-row .key { margin-right: 6px; } .bar-row small { color: var(--dim); }
.warn { border-left: 4px solid var(--c4); padding: 8px 14px; background: var(--card); border-radius: 6px;
  margin: 20px 0 0; }
footer { margin-top: 48px; color: var(--dim); font-size: 13px; }
@media print { main { max-width: none; } .card, .view { break-inside: avoid; } }
"""

# The values of all lines at the pointer; places are those of `chart.py`.
SCRIPT = """
for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const chart = JSON.parse(svg.dataset.chart), [low, high] = chart.x, card = svg.parentNode;
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const tip = document.createElement("div");
  cursor.setAttribute("class", "cursor"); tip.className = "tip"; tip.hidden = true;
  cursor.setAttribute("y1", TOP); cursor.setAttribute("y2", HEIGHT - BOTTOM);
  cursor.style.display = "none"; svg.append(cursor); card.append(tip);
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) * WIDTH / box.width;
    const wanted = low + (at - LEFT) / (WIDTH - RIGHT - LEFT) * (high - low);
    if (wanted < low || wanted > high) return hide();
    let x = null; tip.replaceChildren();
    const rows = chart.lines.map(line => {
      let best = line.points[0];
      for (const p of line.points) if (Math.abs(p[0] - wanted) < Math.abs(best[0] - wanted)) best = p;
      if (x === null || Math.abs(best[0] - wanted) < Math.abs(x - wanted)) x = best[0];
      const row = document.createElement("div"), dot = document.createElement("i");
      row.className = "key"; dot.style.background = `var(--c${line.color})`;
      const value = best[1].toLocaleString("en", {maximumSignificantDigits: 5});
      row.append(dot, `${line.name}: ${value}${chart.unit}`);
      return row;
    });
    const head = document.createElement("div"); head.textContent = `step ${x.toLocaleString("en")}`;
    tip.append(head, ...rows); tip.hidden = false; cursor.style.display = "";
    const place = LEFT + (x - low) / (high - low || 1) * (WIDTH - RIGHT - LEFT);
    cursor.setAttribute("x1", place); cursor.setAttribute("x2", place);
    const left = event.clientX - card.getBoundingClientRect().left;
    tip.style.left = `${Math.max(8, Math.min(left + 14, card.clientWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${event.clientY - card.getBoundingClientRect().top + 16}px`;
  });
  const hide = () => { tip.hidden = true; cursor.style.display = "none"; };
  svg.addEventListener("pointerleave", hide);
}
"""
