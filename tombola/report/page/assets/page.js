"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const views = new Map();
  const SMALLEST = 0.85;

  // What figures say in colours for white paper, and what stands for it on a dark page.
  const ON_DARK = {
    "#0072B2": "#4ba3df", "#D55E00": "#f0803c", "#009E73": "#2fc79a", "#000000": "#f2f2f2", black: "#e8eaee",
    white: "#14161a", "#666666": "#a8afba", "#c4c4c4": "#59606b", "#e8e8e8": "#2a2e36", "#8C564B": "#c08a7e",
    "#440154": "#fde725", "#443983": "#c2df23", "#31688e": "#86d549", "#21918c": "#3dbc74", "#35b779": "#1fa088",
    "#6ccd5a": "#3b8fb5", "#c2c81e": "#8f8be0",
  };

  function coloured(part, key) {
    if (typeof part === "string") return ON_DARK[part] || part;
    if (part === null || typeof part !== "object" || ["data", "datasets", "domain", "value"].includes(key)) return part;
    if (Array.isArray(part)) return part.map((one) => coloured(one, key));
    return Object.fromEntries(Object.entries(part).map(([name, one]) => [name, coloured(one, name)]));
  }

  function style(width, fixed) {
    const of = (name) => getComputedStyle(root).getPropertyValue(name).trim();
    const [ink, muted, grid] = [of("--ink"), of("--muted"), of("--grid")];
    return {
      background: null,
      font: getComputedStyle(document.body).fontFamily,
      padding: fixed ? 4 : { left: 0, right: 6, top: 6, bottom: 5 },
      axis: { labelColor: muted, titleColor: ink, gridColor: grid, domainColor: muted, tickColor: muted,
        labelFontSize: 12, titleFontSize: 12.5, titleFontWeight: "normal", titlePadding: 8 },
      legend: { labelColor: ink, titleColor: muted, labelFontSize: 12.5, titleFontSize: 12, titleFontWeight: "normal",
        labelLimit: Math.max(width / 2 - 40, 80), symbolStrokeWidth: 2, rowPadding: 4, columnPadding: 14,
        orient: "bottom", titleAnchor: "start", layout: { bottom: { anchor: "start", direction: "vertical", margin: 12 } } },
      title: { color: ink, subtitleColor: muted, anchor: "start" },
      view: { stroke: null },
    };
  }

  // The specification of a figure as it is drawn on the page; a file gets it as it is.
  function onPage(chart, width) {
    const spec = isDark() ? coloured(structuredClone(chart.spec), "") : structuredClone(chart.spec);
    spec.config = style(width, chart.fixed);
    delete spec.description;
    if (chart.fixed) {
      if (spec.title) delete spec.title;
      return spec;
    }
    delete spec.title;
    spec.width = width;
    spec.height = width < 480 ? 220 : 280;
    spec.autosize = { type: "fit-x", contains: "padding" };
    const longest = Math.max(4, ...chart.series.flatMap((one) => one.names.map((name) => name.length)));
    spec.config.legend.columns = Math.max(1, Math.floor(width / (46 + 7 * longest)));
    return spec;
  }

  async function draw(figure) {
    const source = sourceOf(figure);
    const chart = JSON.parse(source);
    const place = figure.querySelector(".drawing");
    const width = Math.floor(place.clientWidth);
    if (!width) return;
    const known = views.get(figure);
    const hidden = known ? known.hidden : new Set();
    const state = { width, hidden, source, view: null };
    views.set(figure, state);
    known?.view?.finalize();
    const host = document.createElement("div");
    const { view } = await vegaEmbed(host, onPage(chart, width), {
      ast: true, actions: false, renderer: "svg", defaultStyle: false, tooltip: { disableDefaultStyle: true },
    });
    if (views.get(figure) !== state) return void view.finalize(); // begun again in the meantime
    if (chart.fixed) shrink(host.querySelector("svg"), width);
    place.replaceChildren(host);
    place.style.minHeight = "0";
    state.view = view;
    for (const { parameter } of chart.series) {
      state[parameter] = view.data(`${parameter}_store`);
      if (hidden.size) select(figure, parameter);
      view.addDataListener(`${parameter}_store`, (_, shown) => follow(figure, parameter, shown));
    }
    if (hidden.size) await view.runAsync();
    figure.dataset.drawn = isDark() ? "dark" : "light";
  }

  // Of a figure with one width: smaller where there is little room, but not so small that it can't be read.
  function shrink(svg, width) {
    svg.style.width = `${Math.round(Math.min(Number(svg.getAttribute("width")), Math.max(width, SMALLEST * svg.getAttribute("width"))))}px`;
    svg.style.height = "auto";
  }

  const sourceOf = (figure) => figure.querySelector('script[type="application/json"]').textContent;
  const read = (figure) => JSON.parse(sourceOf(figure));
  const boxes = (figure, parameter) => [...figure.querySelectorAll("input")].filter((box) => box.dataset.parameter === parameter);
  const keyOf = (parameter, name) => `${parameter} ${name}`;

  // The series that the checkboxes have; none of them means that all are shown, as with a legend.
  function select(figure, parameter) {
    const { view, hidden, [parameter]: all } = views.get(figure);
    view.data(`${parameter}_store`, all.filter((one) => !hidden.has(keyOf(parameter, one.values[0]))).map((one) => ({ ...one })));
  }

  function follow(figure, parameter, shown) {
    const { hidden } = views.get(figure);
    const names = new Set(shown.map((one) => String(one.values[0])));
    for (const box of boxes(figure, parameter)) {
      box.checked = !names.size || names.has(box.value);
      hidden[box.checked ? "delete" : "add"](keyOf(parameter, box.value));
    }
  }

  function toggle(box) {
    const figure = box.closest("figure");
    const { parameter } = box.dataset;
    const state = views.get(figure);
    if (!state) return;
    state.hidden[box.checked ? "delete" : "add"](keyOf(parameter, box.value));
    if (!state.view) return;
    select(figure, parameter);
    state.view.runAsync();
  }

  const waiting = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting && views.get(target)?.source !== sourceOf(target)) draw(target);
    }
  }, { rootMargin: "400px" });

  function again(changed) {
    for (const [figure, state] of [...views]) {
      const width = Math.floor(figure.querySelector(".drawing").clientWidth);
      if (width && (changed || (width !== state.width && !read(figure).fixed))) draw(figure);
    }
  }

  // What is served replaces parts of itself and says so: a chart with other numbers is drawn again, its hidden series
  // stay hidden.
  function swapped() {
    for (const [figure, { hidden, source, view }] of [...views]) {
      if (!figure.isConnected) {
        view?.finalize();
        views.delete(figure);
        continue;
      }
      for (const box of figure.querySelectorAll("input")) box.checked = !hidden.has(keyOf(box.dataset.parameter, box.value));
      if (sourceOf(figure) === source) continue;
      draw(figure);
      const details = figure.querySelector("details.numbers");
      details.querySelector(".table")?.remove();
      if (details.open) numbers(details);
    }
    for (const figure of document.querySelectorAll("figure.chart")) waiting.observe(figure);
  }

  function save(name, content, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  async function saveFigure(figure, kind) {
    const { name, spec } = read(figure);
    const { view } = await vegaEmbed(document.createElement("div"), spec, { ast: true, actions: false, renderer: "svg", defaultStyle: false, tooltip: false });
    if (kind === "svg") return save(`${name}.svg`, await view.toSVG(), "image/svg+xml");
    const canvas = await view.toCanvas(2);
    canvas.toBlob((image) => save(`${name}.png`, image, "image/png"), "image/png");
  }

  function saveTable(table) {
    const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const saved = (cell) => cell.dataset.saved ?? cell.dataset.sort ?? cell.textContent.trim();
    const lines = [...table.rows].map((row) => [...row.cells].map((cell) => quoted(saved(cell))).join(","));
    save(`${table.dataset.name}.csv`, lines.map((line) => `${line}\n`).join(""), "text/csv;charset=utf-8");
  }

  // The numbers of a chart as a table, made when somebody asks for it.
  function numbers(details) {
    const { name, spec, columns, rows } = read(details.closest("figure"));
    const title = details.closest("figure").querySelector("h3, h4").textContent;
    const part = (tag, fields = {}, ...inside) => {
      const made = Object.assign(document.createElement(tag), fields);
      made.append(...inside);
      return made;
    };
    const cell = (value) => {
      const isNumber = typeof value === "number";
      const made = part("td", { className: isNumber ? "number" : "" }, isNumber ? value.toLocaleString("en", { maximumSignificantDigits: 5 }) : value ?? "");
      if (isNumber) made.dataset.sort = value;
      return made;
    };
    const points = rows.flatMap((row) => spec.datasets[row]);
    const head = columns.map(([field, heading]) =>
      part("th", { scope: "col", className: typeof points[0]?.[field] === "number" ? "number" : "" }, part("button", { type: "button" }, heading)));
    const body = points.map((point) => part("tr", {}, ...columns.map(([field]) => cell(point[field]))));
    const table = part("table", { className: "sortable n-last asc" }, part("caption", {}, part("span", {}, `The numbers of ${title}`)),
      part("thead", {}, part("tr", {}, ...head)), part("tbody", {}, ...body));
    table.dataset.name = `${name}-numbers`;
    const scroll = part("div", { className: "scroll long", tabIndex: 0, role: "region", ariaLabel: `The numbers of ${title}` }, table);
    const button = part("button", { type: "button" }, "Download CSV");
    button.dataset.do = "csv";
    details.append(part("div", { className: "table" }, scroll, part("p", { className: "tools" }, button)));
  }

  function theme() {
    const button = document.getElementById("theme");
    button.setAttribute("aria-pressed", String(isDark()));
    again(true);
  }

  document.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    const kind = button?.dataset.do;
    if (button?.id === "theme") {
      root.dataset.theme = isDark() ? "light" : "dark";
      theme();
    } else if (kind === "csv") {
      saveTable(button.closest(".table").querySelector("table"));
    } else if (kind) {
      saveFigure(button.closest("figure"), kind);
    }
  });
  document.addEventListener("change", ({ target }) => target.dataset.parameter && toggle(target));
  document.addEventListener("toggle", ({ target }) => {
    if (target.open && target.classList.contains("numbers") && !target.querySelector("table")) numbers(target);
  }, true);
  document.addEventListener("tombola:swapped", swapped);
  dark.addEventListener("change", theme);
  let timer;
  addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => again(false), 150);
  });
  document.getElementById("theme").setAttribute("aria-pressed", String(isDark()));
  for (const figure of document.querySelectorAll("figure.chart")) waiting.observe(figure);
})();
