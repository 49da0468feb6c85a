"use strict";
// The table of runs. Everything from a run reaches the document through textContent; `report` is what the plots use.
const report = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const listeners = [];
  const state = { sort: null, descending: false, search: "", states: new Set(), filters: new Map(), implied: false, picked: new Set() };

  function element(tag, text, className) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function show(value, key) {
    if (value === null || value === undefined) return "–";
    if (typeof value !== "number") return value;
    if (key.startsWith("val_bpb.")) return value.toFixed(4);
    if (key === "quant_gap") return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(4);
    if (key.endsWith("_s")) return value.toLocaleString("en", { maximumFractionDigits: 1 });
    if (Number.isInteger(value)) return Math.abs(value) >= 100000 ? value.toLocaleString("en") : String(value);
    return String(Number(value.toPrecision(6)));
  }

  // ------------------------------------------------------------ what is shown, in which order
  const columnsShown = () => data.columns.map((column, index) => ({ ...column, index })).filter((column) => !column.implied || state.implied);

  function bound(text) {
    const found = /^\s*(<=|>=|<|>|=)?\s*(-?[\d.,]+(?:e[+-]?\d+)?)\s*$/i.exec(text);
    if (!found) return null;
    const limit = Number(found[2].replaceAll(",", ""));
    const tests = { "<": (v) => v < limit, "<=": (v) => v <= limit, ">": (v) => v > limit, ">=": (v) => v >= limit, "=": (v) => v === limit };
    return (value) => typeof value === "number" && tests[found[1] || "="](value);
  }

  function passes(run) {
    if (state.states.has(run.state)) return false;
    for (const [index, wanted] of state.filters) {
      const value = run.values[index];
      if (wanted.exact !== undefined) {
        if (show(value, data.columns[index].key) !== wanted.exact) return false;
      } else {
        const test = bound(wanted.text);
        if (test ? !test(value) : !show(value, data.columns[index].key).toLowerCase().includes(wanted.text.toLowerCase())) return false;
      }
    }
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return true;
    const cells = columnsShown().map((column) => column.label + "=" + show(run.values[column.index], column.key));
    const text = [run.name, run.label, run.state, run.note, ...cells].join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number") return -1;
    if (typeof b === "number") return 1;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }

  const empty = (value) => value === null || value === undefined || value === "–";
  const valueOf = (index) => state.sort === "name" || state.sort === "state" ? data.runs[index][state.sort] : data.runs[index].values[state.sort];

  function visible() {
    const kept = data.runs.map((_, index) => index).filter((index) => passes(data.runs[index]));
    if (state.sort === null) return kept;
    const sign = state.descending ? -1 : 1;
    return kept.sort((i, j) => {
      const a = valueOf(i), b = valueOf(j);
      return empty(a) - empty(b) || (empty(a) ? i - j : sign * compare(a, b) || i - j); // those without a value come last
    });
  }

  // ------------------------------------------------------------ drawing
  function heading(key, label, title, left) {
    const cell = element("th", undefined, left ? "left" : "");
    const button = element("button", label);
    button.type = "button";
    button.title = title;
    button.addEventListener("click", () => {
      state.descending = state.sort === key && !state.descending;
      state.sort = key;
      update();
    });
    cell.dataset.key = key;
    cell.append(button);
    cell.scope = "col";
    return cell;
  }

  function filterFor(column) {
    const texts = [...new Set(data.runs.map((run) => show(run.values[column.index], column.key)))];
    const choose = column.kind === "setting" && texts.length <= 24;
    const field = element(choose ? "select" : "input");
    field.setAttribute("aria-label", "filter " + column.key);
    if (choose) {
      field.append(new Option("all", ""));
      const first = new Map(data.runs.map((run) => [show(run.values[column.index], column.key), run.values[column.index]]));
      texts.sort((a, b) => compare(first.get(a), first.get(b))).forEach((text) => field.append(new Option(text, "=" + text)));
    } else {
      field.placeholder = column.kind === "figure" ? "< >" : "";
    }
    const held = state.filters.get(column.index);
    if (held) field.value = choose ? "=" + held.exact : held.text;
    field.addEventListener(choose ? "change" : "input", () => {
      if (!field.value.trim()) state.filters.delete(column.index);
      else state.filters.set(column.index, choose ? { exact: field.value.slice(1) } : { text: field.value });
      update();
    });
    return field;
  }

  function drawHead() {
    const names = element("tr"), filters = element("tr");
    names.append(heading("name", "run", "folder", true), heading("state", "state", "state", true));
    filters.append(element("th"), element("th"));
    for (const column of columnsShown()) {
      names.append(heading(column.index, column.label, column.key, false));
      const cell = element("th");
      cell.append(filterFor(column));
      filters.append(cell);
    }
    $("table").tHead.replaceChildren(names, filters);
  }

  function rowOf(index, best, columns) {
    const run = data.runs[index];
    const row = element("tr", undefined, (index === best ? "best " : run.state === "invalid" ? "aside " : "") + (state.picked.has(index) ? "picked" : ""));
    row.dataset.run = index;
    const name = element("td", undefined, "left"), told = element("td", undefined, "left");
    const link = element("a", run.name.length > 24 ? "…" + run.name.slice(-22) : run.name);
    link.href = run.href;
    link.title = run.name === run.label ? run.name : `${run.name}: ${run.label}`;
    name.append(link);
    if (onFront.has(index)) {
      const sign = element("span", " ◆", "front");
      sign.title = "on the Pareto front of score and artifact bytes";
      name.append(sign);
    }
    told.append(element("span", run.state, "state " + run.state));
    if (run.note) {
      told.append(element("span", run.note, "note"));
      told.title = run.note;
    }
    row.append(name, told);
    for (const column of columns) row.append(element("td", show(run.values[column.index], column.key)));
    return row;
  }

  function drawBody(shown) {
    const best = data.runs.findIndex((run) => run.state === "completed" && run.score !== null);
    const columns = columnsShown();
    const rows = shown.map((index) => rowOf(index, best, columns));
    if (!rows.length) {
      const none = element("tr", undefined, "empty"), cell = element("td", "No run passes these filters.");
      cell.colSpan = columns.length + 2;
      none.append(cell);
      rows.push(none);
    }
    $("table").tBodies[0].replaceChildren(...rows);
    $("shown").textContent = shown.length === data.runs.length ? String(shown.length) : `${shown.length} of ${data.runs.length}`;
  }

  function update() {
    const shown = visible();
    drawBody(shown);
    for (const cell of $("table").tHead.rows[0].cells) {
      const key = cell.dataset.key === "name" || cell.dataset.key === "state" ? cell.dataset.key : Number(cell.dataset.key);
      if (key === state.sort) cell.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    listeners.forEach((listener) => listener(shown));
  }

  function drawStates() {
    const counts = Object.entries(data.states);
    $("states").replaceChildren();
    if (counts.length < 2) return;
    for (const [name, count] of counts) {
      const button = element("button", undefined, "chip");
      button.type = "button";
      button.append(element("span", `${name} ${count}`, "state " + name));
      button.setAttribute("aria-pressed", String(!state.states.has(name)));
      button.addEventListener("click", () => {
        if (!state.states.delete(name)) state.states.add(name);
        drawStates();
        update();
      });
      $("states").append(button);
    }
  }

  function plainTable(id, told) {
    const table = $(id), head = element("tr");
    told.header.forEach((name, i) => head.append(element("th", name, i < told.left ? "left" : "")));
    table.tHead.replaceChildren(head);
    table.tBodies[0].replaceChildren(...told.rows.map((cells, number) => {
      const row = element("tr", undefined, told.bold[number] ? "best" : "");
      cells.forEach((text, i) => row.append(element("td", text, i < told.left ? "left" : "")));
      return row;
    }));
  }

  // Columns beyond the edge are no secret: a shadow on either side, and beside the title how many are hidden.
  function edges(box) {
    const right = box.scrollWidth - box.clientWidth - box.scrollLeft;
    box.parentElement.classList.toggle("more-left", box.scrollLeft > 1);
    box.parentElement.classList.toggle("more-right", right > 1);
    if (!box.contains($("table"))) return;
    box.parentElement.style.setProperty("--kept", $("table").tHead.rows[0].cells[0].offsetWidth + "px");
    const edge = box.getBoundingClientRect().right;
    const hidden = [...$("table").tHead.rows[0].cells].filter((cell) => cell.getBoundingClientRect().right > edge + 1).length;
    $("aside").hidden = !hidden;
    $("aside").textContent = `${hidden} more column${hidden > 1 ? "s" : ""} →`;
  }

  const onFront = new Set(data.runs.length > 1 ? data.front : []);
  drawStates();
  drawHead();
  const implied = data.columns.filter((column) => column.implied).length;
  if (implied) {
    $("more").hidden = false;
    const label = () => { $("more").textContent = state.implied ? "Fewer columns" : `${implied} more that follow from these`; };
    label();
    $("more").addEventListener("click", () => {
      state.implied = !state.implied;
      if (!state.implied) data.columns.forEach((column, index) => column.implied && state.filters.delete(index));
      label();
      drawHead();
      update();
    });
  }
  $("search").addEventListener("input", () => { state.search = $("search").value; update(); });
  $("clear").addEventListener("click", () => {
    state.search = $("search").value = "";
    state.states.clear();
    state.filters.clear();
    state.picked.clear();
    state.sort = null;
    drawStates();
    drawHead();
    update();
  });
  $("table").tBodies[0].addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-run]");
    if (!row || event.target.closest("a")) return;
    const index = Number(row.dataset.run);
    if (!state.picked.delete(index)) state.picked.add(index);
    row.classList.toggle("picked");
    listeners.forEach((listener) => listener(visible()));
  });
  for (const [section, name, told] of [["ablation", "ablation", data.ablation], ["seeds", "seed", data.seeds], ["fractions", "fraction", data.fractions]]) {
    if (!told) continue;
    $(section).hidden = false;
    plainTable(name + "-table", told);
    $(name + "-note").textContent = told.note;
  }
  if (data.shared.length) {
    document.querySelector("#shared summary").textContent = `${data.shared.length} settings that all runs share`;
    document.querySelector("#shared dl").append(...data.shared.map(([name, value]) => {
      const pair = element("div");
      pair.append(element("dt", name), element("dd", value));
      return pair;
    }));
  } else $("shared").hidden = true;
  update();
  const boxes = [...document.querySelectorAll(".scroll")];
  const watch = new ResizeObserver(() => boxes.forEach(edges));
  boxes.forEach((box) => {
    box.addEventListener("scroll", () => edges(box), { passive: true });
    watch.observe(box);
    watch.observe(box.firstElementChild);
  });
  $("aside").addEventListener("click", () => { boxes[0].scrollLeft = boxes[0].scrollWidth; });
  return { data, show, visible, picked: state.picked, listen: (listener) => listeners.push(listener) };
})();
