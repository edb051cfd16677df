"use strict";
(async () => {
  const words = JSON.parse(document.getElementById("words").textContent);
  const specs = new Map(
    [...document.querySelectorAll("script[data-spec]")].map((node) => [node.dataset.spec, node.textContent]),
  );

  function unpack(spec) {
    for (const [name, { columns, rows }] of Object.entries(spec.datasets)) {
      spec.datasets[name] = rows.map((row) => Object.fromEntries(columns.map((column, i) => [column, row[i]])));
    }
    return spec;
  }

  // A narrow page gives the room to the marks: shorter axis labels, fewer columns in the legend.
  function fit(spec, width) {
    const { axis, legend } = spec.config;
    axis.labelLimit = Math.round(Math.min(axis.labelLimit, width * 0.36));
    // The legend begins where the axis labels end.
    legend.labelLimit = Math.round(Math.min(legend.labelLimit, width * 0.48));
    const longest = Math.max(0, ...legendLabels(spec).map((label) => Math.min(String(label).length * 7, legend.labelLimit)));
    legend.gradientLength = Math.round(Math.min(legend.gradientLength, width * 0.4));
    const named = layersOf(spec).some((layer) => layer.encoding?.y?.type === "nominal");
    const room = named ? width - axis.labelLimit : width;
    legend.columns = Math.max(1, Math.min(6, Math.floor(room / (longest + 46))));
    return spec;
  }

  function layersOf(spec) {
    return spec.layer ?? [spec];
  }

  function legendLabels(spec) {
    return layersOf(spec).flatMap((layer) => layer.encoding?.color?.scale?.domain ?? []);
  }

  async function draw(holder) {
    const spec = fit(unpack(JSON.parse(specs.get(holder.dataset.chart))), holder.clientWidth);
    try {
      await vegaEmbed(holder, spec, {
        renderer: "svg",
        ast: true,
        actions: "plain" in holder.dataset ? false : { export: true, source: false, compiled: false, editor: false },
        downloadFileName: holder.dataset.chart,
        i18n: { SVG_ACTION: words.save_svg, PNG_ACTION: words.save_png, CLICK_TO_VIEW_ACTIONS: words.save },
      });
    } catch (error) {
      holder.textContent = words.chart_failed;
      console.error(error);
    }
  }

  // On a telephone the contents would fill the first screen.
  if (innerWidth < 640) document.querySelector(".contents details").open = false;

  for (const holder of document.querySelectorAll("[data-chart]")) {
    await draw(holder);
    // Between two charts the page may scroll, so that a long report is never frozen.
    await new Promise((resolve) => setTimeout(resolve));
  }
  document.documentElement.dataset.charts = "drawn";

  // On paper nothing can be unfolded.
  const folded = () => [...document.querySelectorAll("main details:not([open])")].filter((node) => !node.closest(".vega-embed"));
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = folded();
    opened.forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((details) => { details.open = false; }));
})();
