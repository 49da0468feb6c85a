"use strict";
// The plots, drawn again whenever the table's filters, a toggle or the colour scheme change. Only SVG traces: plotly's
// WebGL ones (its own parallel coordinates too) stay empty on machines without a GPU.
(() => {
  const { data, show } = report;
  const $ = (id) => document.getElementById(id);
  const PALETTE = ["#2a7f9e", "#d1663d", "#4f9d69", "#a35fa6", "#c9982b", "#5b6fc4", "#c4557a", "#7d8a35", "#2fa39a", "#8a6d5b"];
  const SCALE = ["#1f7a8c", "#4aa896", "#a9b665", "#e0a458", "#cf5c3c"]; // best to worst
  const GREY = "#9298a0";
  const DASHES = { failed: "dot", invalid: "dash" };
  const AXES = { step: "step", tokens: "training tokens", train_time_s: "training time, s" };
  // plotly reads a little HTML in its texts: what comes from runs is shown as it is written
  const safe = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const chosen = { axis: "step", scale: "linear", colour: "" };
  const columnAt = new Map(data.columns.map((column, index) => [column.key, index]));
  const valueOf = (run, key) => run.values[columnAt.get(key)];
  const labelOf = (key) => data.columns[columnAt.get(key)].label;
  const isValid = (run) => run.state === "completed" && run.score !== null;
  const scores = data.runs.map((run) => run.score).filter((score) => score !== null);
  const valid = data.runs.filter(isValid).map((run) => run.score);
  const bestScore = Math.min(...valid), worstScore = usefulWorst(); // of valid runs: no other may look like the best

  // One diverged run must not paint all others in one colour: the scale ends three interquartile ranges out.
  function usefulWorst() {
    const sorted = [...valid].sort((a, b) => a - b), at = (q) => sorted[Math.floor(q * (sorted.length - 1))];
    return sorted.length ? Math.min(sorted[sorted.length - 1], at(0.75) + 3 * (at(0.75) - at(0.25) || Infinity)) : 0;
  }

  function blend(share) {
    const place = Math.max(0, Math.min(1, share)) * (SCALE.length - 1), low = Math.min(SCALE.length - 2, Math.floor(place));
    const channel = (colour, i) => parseInt(colour.slice(1 + 2 * i, 3 + 2 * i), 16);
    const mixed = [0, 1, 2].map((i) => Math.round(channel(SCALE[low], i) + (place - low) * (channel(SCALE[low + 1], i) - channel(SCALE[low], i))));
    return `rgb(${mixed.join(",")})`;
  }

  const byScore = (run) => !isValid(run) ? GREY : blend((run.score - bestScore) / (worstScore - bestScore || 1));

  function sortedValues(key, runs = data.runs) {
    const values = [...new Set(runs.map((run) => valueOf(run, key)))];
    return values.sort((a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  }

  function colouring() {
    if (chosen.colour === "score") return byScore;
    if (chosen.colour === "run") return (_, index) => PALETTE[index % PALETTE.length];
    const values = sortedValues(chosen.colour);
    const numbers = values.every((value) => typeof value === "number");
    return (run) => {
      const place = values.indexOf(valueOf(run, chosen.colour));
      return numbers || values.length > PALETTE.length ? blend(place / (values.length - 1 || 1)) : PALETTE[place];
    };
  }

  // ------------------------------------------------------------ plotly's dress
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = (title, more) => ({
    title: { text: title, standoff: 10 }, gridcolor: css("--rule"), linecolor: css("--rule"), zeroline: false, automargin: true, ...more,
  });

  function draw(id, traces, layout) {
    const font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--ink") };
    const dress = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font, margin: { l: 56, r: 18, t: 26, b: 44 },
      hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--rule"), font: { ...font, size: 12 }, align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--rule"), activecolor: css("--quiet") }, showlegend: false, hovermode: "closest", ...layout,
    };
    // named one by one: plotly has a button of its own that uploads a chart, and a report stays where it is
    const config = { responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
    return Plotly.react(id, traces, dress, config);
  }

  function about(run) {
    const told = data.swept.map((key) => `${safe(labelOf(key))} ${safe(show(valueOf(run, key), key))}`);
    const score = run.score === null ? [] : [`${safe(data.metric.label)} ${show(run.score, data.metric.key)}`];
    const state = isValid(run) ? [] : [`<b>${safe(run.state)}</b>`];
    const name = run.name === run.label ? [] : [`run ${safe(run.name)}`];
    return [`<b>${safe(run.label)}</b>`, ...state, ...score, ...told.slice(0, 10), ...name].join("<br>");
  }

  function emphasis(index) {
    if (!report.picked.size) return { opacity: 0.85, width: 1.5 };
    return report.picked.has(index) ? { opacity: 1, width: 3 } : { opacity: 0.16, width: 1 };
  }

  // ------------------------------------------------------------ the four plots
  // The first steps fall so far that they would press all differences into a line; a double click shows them.
  function settled(traces) {
    if (chosen.scale === "log") return undefined;
    let low = Infinity, high = -Infinity;
    for (const { y } of traces) {
      for (let i = y.length < 20 ? 0 : Math.floor(y.length / 10); i < y.length; i++) {
        low = Math.min(low, y[i]);
        high = Math.max(high, y[i]);
      }
    }
    const room = 0.04 * (high - low) || 0.1;
    return low > high ? undefined : [low - room, high + room];
  }

  const legend = (run) => (run.label.length > 90 ? run.label.slice(0, 89) + "…" : run.label) + (run.state === "completed" ? "" : `, ${run.state}`);

  function drawCurves(shown) {
    const colour = colouring();
    const traces = shown.filter((index) => data.runs[index].curves[chosen.metric]).map((index) => {
      const run = data.runs[index], curve = run.curves[chosen.metric], { opacity, width } = emphasis(index);
      return {
        type: "scatter", mode: curve.y.length > 1 ? "lines" : "markers", x: curve[chosen.axis], y: curve.y, name: safe(legend(run)),
        text: about(run), hovertemplate: "%{text}<br>%{x:,}: <b>%{y:.4f}</b><extra></extra>", opacity,
        line: { width, color: colour(run, index), dash: DASHES[run.state] || "solid" }, marker: { color: colour(run, index) },
        meta: index,
      };
    });
    const named = chosen.colour === "run" && traces.length > 1 && traces.length <= 20;
    const widest = Math.max(...traces.map((trace) => trace.name.length)) * 6.2 + 60; // of the legend's entries, in pixels
    const across = Math.max(1, Math.floor($("plot-curves").clientWidth / widest));
    $("plot-curves").style.height = named ? `${470 + 19 * Math.ceil(traces.length / across)}px` : "";
    draw("plot-curves", traces, {
      xaxis: axis(AXES[chosen.axis], { rangemode: "tozero" }), yaxis: axis(chosen.metric, { type: chosen.scale, range: settled(traces) }),
      showlegend: named, // below the curves: what differs may take many words
      legend: { orientation: "h", x: 0, y: -0.14, yanchor: "top", bgcolor: "rgba(0,0,0,0)", font: { size: 11 }, entrywidth: widest - 40, entrywidthmode: "pixels" },
    });
  }

  function drawBytes(shown) {
    const kept = shown.filter((index) => data.runs[index].score !== null && data.runs[index].bytes !== null);
    const runs = kept.map((index) => data.runs[index]);
    const front = data.front.filter((index) => kept.includes(index)).map((index) => data.runs[index]);
    const { bytes, limits } = around(runs.map((run) => run.bytes));
    const traces = [
      { type: "scatter", mode: "lines", x: front.map((run) => run.bytes), y: front.map((run) => run.score), line: { shape: "hv", width: 1.5, color: css("--quiet") }, hoverinfo: "skip", name: "Pareto front" },
      {
        type: "scatter", mode: "markers", name: "runs", x: runs.map((run) => run.bytes), y: runs.map((run) => run.score),
        text: runs.map(about), hovertemplate: "%{text}<br>%{x:,} bytes<extra></extra>",
        marker: {
          size: runs.map((run) => front.includes(run) ? 11 : 8), color: runs.map(byScore), opacity: kept.map((index) => emphasis(index).opacity),
          symbol: runs.map((run) => isValid(run) ? "circle" : "circle-x-open"), line: { width: 1, color: css("--panel") },
        },
      },
    ];
    draw("plot-bytes", traces, {
      xaxis: axis("artifact bytes", bytes), yaxis: axis(safe(data.metric.label)), margin: { l: 56, r: 18, t: 46, b: 44 }, ...limits,
    });
  }

  // The axis shows the points. Where the limit lies beyond its end an arrow points to it: it would press them together.
  function around(sizes) {
    const low = Math.min(...sizes), high = Math.max(...sizes), near = Math.max(high - low, 0.1 * high);
    if (!sizes.length) return { bytes: {}, limits: {} };
    const seen = low - near <= data.limit && data.limit <= high + near;
    const ends = seen ? [Math.min(low, data.limit), Math.max(high, data.limit)] : [low, high];
    const log = low > 0 && high > 20 * low, at = (value) => log ? Math.log10(value) : value;
    const [from, to] = ends.map(at), room = 0.07 * (to - from) || 0.05 * high || 1, range = [from - room, to + room];
    const digits = log ? 2 : 2 + Math.max(0, Math.ceil(Math.log10(range[1] / (range[1] - range[0]))));
    const font = { color: css("--bad"), size: 11 }, written = data.limit.toLocaleString("en");
    const line = { type: "line", x0: data.limit, x1: data.limit, yref: "paper", y0: 0, y1: 1, line: { color: font.color, width: 1.2, dash: "dash" } };
    const label = { y: 1, yref: "paper", yanchor: "bottom", showarrow: false, font };
    const above = data.limit > high;
    const words = above ? `limit ${written}, ${(data.limit / high).toPrecision(2)} times the largest  →` : `←  limit ${written}`;
    const note = seen
      ? { ...label, x: at(data.limit), xanchor: at(data.limit) > (range[0] + range[1]) / 2 ? "right" : "left", text: `limit ${written}` }
      : { ...label, x: above ? 1 : 0, xref: "paper", xanchor: above ? "right" : "left", text: words };
    return { bytes: { type: log ? "log" : "linear", range, tickformat: `.${digits}~s`, nticks: 6, dtick: log ? "D2" : undefined }, limits: { shapes: seen ? [line] : [], annotations: [note] } };
  }

  function drawHeat(shown) {
    const [kx, ky] = [$("heat-x").value, $("heat-y").value], scored = data.runs.filter((run) => run.score !== null);
    const xs = sortedValues(kx, scored), ys = sortedValues(ky, scored);
    const cells = new Map(ys.flatMap((y) => xs.map((x) => [JSON.stringify([y, x]), { valid: [], invalid: [] }])));
    for (const index of shown) {
      const run = data.runs[index];
      if (run.score !== null) cells.get(JSON.stringify([valueOf(run, ky), valueOf(run, kx)]))[isValid(run) ? "valid" : "invalid"].push(run.score);
    }
    const seedsOnly = data.swept.length === 2; // then a cell's runs differ in nothing but the seed
    const figure = (found) => !found.length ? null : seedsOnly ? found.reduce((a, b) => a + b, 0) / found.length : Math.min(...found);
    const each = (what) => ys.map((y, row) => xs.map((x, at) => what(cells.get(JSON.stringify([y, x])), x, y, at, row)));
    const z = each((cell) => figure(cell.valid));
    const over = each((cell) => cell.valid.length ? null : figure(cell.invalid));
    const few = xs.length * ys.length <= 150, crossed = over.flat().some((value) => value !== null);
    const counted = (cell) => [[cell.valid, "valid"], [cell.invalid, "invalid"]].filter(([found]) => found.length).map(([found, word]) => `${found.length} ${word}`).join(", ");
    const grid = {
      type: "heatmap", x: xs.map((_, i) => i), y: ys.map((_, i) => i), xgap: 2, ygap: 2, hoverongaps: false, textfont: { color: "#16181b", size: 11 },
      customdata: each((cell, x, y) => `${safe(labelOf(ky))} ${safe(show(y, ky))}<br>${safe(labelOf(kx))} ${safe(show(x, kx))}<br>${counted(cell) || "no run"}`),
    };
    const outlines = over.flatMap((line, row) => line.flatMap((value, at) => value === null ? [] : [
      { type: "rect", x0: at - 0.47, x1: at + 0.47, y0: row - 0.47, y1: row + 0.47, line: { color: css("--bad"), width: 1.5, dash: "dot" } },
      { type: "line", x0: at - 0.47, x1: at + 0.47, y0: row - 0.47, y1: row + 0.47, line: { color: css("--bad"), width: 0.8, dash: "dot" }, layer: "between" },
    ]));
    draw("plot-heat", [{
      ...grid, z,
      zmin: Number.isFinite(bestScore) ? bestScore : undefined, zmax: worstScore || undefined,
      colorscale: SCALE.map((colour, i) => [i / (SCALE.length - 1), colour]), colorbar: { thickness: 10, outlinewidth: 0, tickformat: ".3f" },
      hovertemplate: "%{customdata}<br><b>%{z:.4f}</b><extra></extra>", texttemplate: few ? "%{z:.4f}" : undefined,
    }, ...(crossed ? [{
      ...grid, z: over, colorscale: [[0, GREY], [1, GREY]], opacity: 0.35, showscale: false,
      hovertemplate: "%{customdata}<br><b>%{z:.4f}, over a limit</b><extra></extra>", text: over.map((line) => line.map((value) => value === null ? "" : few ? `✗ ${value.toFixed(4)}` : "✗")), texttemplate: "%{text}", textfont: { color: css("--bad"), size: 11 },
    }] : [])], {
      shapes: outlines,
      xaxis: axis(safe(labelOf(kx)), { tickvals: xs.map((_, i) => i), ticktext: xs.map((x) => safe(show(x, kx))), showgrid: false }),
      yaxis: axis(safe(labelOf(ky)), { tickvals: ys.map((_, i) => i), ticktext: ys.map((y) => safe(show(y, ky))), showgrid: false }),
    });
    const cell = seedsOnly ? "the mean over the valid runs of a cell" : "the best valid run of a cell, whatever the other settings";
    $("heat-note").textContent = `${data.metric.label}: ${cell}.${crossed ? " ✗: no valid run there, and no colour." : ""}`;
  }

  function drawParallel(shown) {
    const keys = data.swept.slice(0, 10), last = keys.length;
    const lists = keys.map((key) => sortedValues(key));
    const low = Math.min(...scores), high = Math.max(...scores);
    // each setting's values stand at equal distances, so that 0.01, 0.02 and 0.04 can be told apart
    const place = (list, value) => list.length > 1 ? list.indexOf(value) / (list.length - 1) : 0.5;
    const drawn = shown.filter((index) => data.runs[index].score !== null).reverse(); // the best on top, invalid ones behind
    const traces = drawn.map((index) => {
      const run = data.runs[index], { opacity, width } = emphasis(index);
      const nudge = ((index * 0.618) % 1 - 0.5) * 0.03; // runs that share a value do not hide each other
      return {
        type: "scatter", mode: "lines", x: [...keys.map((_, i) => i), last], meta: index,
        y: [...keys.map((key, i) => place(lists[i], valueOf(run, key)) + nudge), (run.score - low) / (high - low || 1)],
        line: { color: byScore(run), width, shape: "spline", smoothing: 0.5, dash: isValid(run) ? "solid" : "dash" }, opacity: Math.min(opacity, drawn.length > 60 && !report.picked.size ? 0.5 : 1),
        text: about(run), hovertemplate: "%{text}<extra></extra>",
      };
    });
    const label = (x, y, text) => ({ x, y, text, showarrow: false, xanchor: "left", xshift: 7, font: { size: 11, color: css("--ink") }, bgcolor: css("--panel"), opacity: 0.9, borderpad: 1 });
    const annotations = lists.flatMap((list, i) => list
      .filter((_, number) => list.length <= 14 || number % Math.ceil(list.length / 14) === 0)
      .map((value) => label(i, place(list, value), safe(show(value, keys[i])))));
    if (scores.length) [0, 0.25, 0.5, 0.75, 1].forEach((share) => annotations.push(label(last, share, show(low + share * (high - low), data.metric.key))));
    draw("plot-parallel", traces, {
      margin: { l: 24, r: 70, t: 26, b: 40 }, annotations,
      xaxis: { tickvals: [...keys.map((_, i) => i), last], ticktext: [...keys.map((key) => safe(labelOf(key))), `<b>${safe(data.metric.label)}</b>`], showgrid: true, gridcolor: css("--quiet"), zeroline: false, range: [-0.06, last + 0.06], fixedrange: true },
      yaxis: { visible: false, range: [-0.06, 1.06], fixedrange: true },
    });
  }

  // ------------------------------------------------------------ controls
  function toggle(id, options, name, after) {
    const buttons = options.map(([value, text]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.dataset.value = value;
      button.addEventListener("click", () => { chosen[name] = value; press(); after(); });
      return button;
    });
    const press = () => buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.value === chosen[name])));
    $(id).replaceChildren(...buttons);
    press();
  }

  const drawers = [];
  const open = (id, drawer) => { $(id).hidden = false; drawers.push(drawer); };
  const metrics = ["train_loss", "val_loss", "val_bpb"].filter((name) => data.runs.some((run) => run.curves[name]));
  if (metrics.length) {
    chosen.metric = metrics[0];
    chosen.colour = data.runs.length <= PALETTE.length ? "run" : "score";
    const redraw = () => drawCurves(report.visible());
    toggle("curve-metric", metrics.map((name) => [name, name]), "metric", redraw);
    toggle("curve-axis", [["step", "step"], ["tokens", "tokens"], ["train_time_s", "time"]], "axis", redraw);
    toggle("curve-scale", [["linear", "linear"], ["log", "log"]], "scale", redraw);
    const options = [["run", "run"], ["score", data.metric.label], ...data.columns.filter((c) => c.kind === "setting" && !c.implied).map((c) => [c.key, c.label])];
    $("curve-colour").append(...options.map(([value, text]) => new Option(text, value, false, value === chosen.colour)));
    $("curve-colour").addEventListener("change", () => { chosen.colour = $("curve-colour").value; redraw(); });
    open("curves", drawCurves);
  }
  if (data.runs.some((run) => run.score !== null && run.bytes !== null)) open("bytes", drawBytes);
  if (scores.length > 1 && data.swept.length >= 2) {
    const [x, y] = ["heat-x", "heat-y"].map($);
    data.swept.forEach((key, i) => {
      x.append(new Option(labelOf(key), key, false, i === 1));
      y.append(new Option(labelOf(key), key, false, i === 0));
    });
    $("heat-choice").hidden = data.swept.length === 2;
    [x, y].forEach((field) => field.addEventListener("change", () => drawHeat(report.visible())));
    open("heat", drawHeat);
  }
  if (scores.length > 1 && data.swept.length) open("parallel", drawParallel);
  let waiting = 0;
  const redrawAll = () => drawers.forEach((drawer) => drawer(report.visible()));
  report.listen(() => { clearTimeout(waiting); waiting = setTimeout(redrawAll, 60); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
  redrawAll();
})();
