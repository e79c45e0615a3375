"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 40rem)");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  // On a phone the 2s and 5s of a long logarithmic axis keep their grid lines and lose their labels.
  function labels(base) {
    if (!narrow.matches || !base.tickvals || base.tickvals.length <= 6) return base;
    const isDecade = (value) => Number.isInteger(Math.round(Math.log10(value) * 1e6) / 1e6);
    return { ...base, ticktext: base.ticktext.map((text, i) => (isDecade(base.tickvals[i]) ? text : "")) };
  }

  function axis(base) {
    return {
      ...labels(base), automargin: true, gridcolor: color("grid"), linecolor: color("line"), zerolinecolor: color("line"),
      showline: true, ticks: "outside", tickcolor: color("line"), minor: { ticks: "" }, tickangle: 0,
      title: { ...base.title, standoff: 10, font: { size: narrow.matches ? 11 : 13, color: color("soft") } },
    };
  }

  function paint(trace) {
    const ink = color("s" + (trace.meta.series % 8));
    if (trace.type === "heatmap") {
      return { ...trace, colorscale: [[0, color("heat-low")], [1, color("heat-high")]], hoverongaps: false,
        textfont: { color: color("ink") } };
    }
    const soft = Boolean(trace.meta.is_soft);
    return {
      ...trace, line: { width: soft ? 1.5 : 2, ...trace.line, color: ink }, opacity: soft ? 0.75 : 1,
      textfont: { color: color("soft"), size: 11 },
      marker: { ...trace.marker, color: ink, line: { color: ink, width: 1.5 } },
      ...(trace.error_y ? { error_y: { ...trace.error_y, color: ink } } : {}),
    };
  }

  function draw(id) {
    const place = document.getElementById(id);
    const picker = document.querySelector(`select[data-plot="${id}"]`);
    const figure = figures[id][picker ? picker.selectedIndex : 0];
    const { height, shapes, ...rest } = figure.layout;
    place.style.height = height ? `${height}px` : "";
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow.matches ? 11 : 13, color: color("ink") },
      margin: narrow.matches ? { l: 8, r: 12, t: 14, b: 8 } : { l: 16, r: 28, t: 20, b: 16 },
      legend: { orientation: "h", x: 0, y: 1.02, xanchor: "left", yanchor: "bottom" },
      hoverlabel: { align: "left", bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") } },
      showlegend: figure.data.length > 1, hovermode: "closest", dragmode: narrow.matches ? false : "zoom",
      shapes: (shapes || []).map((s) => ({ ...s, layer: "below", line: { width: 0 }, fillcolor: color("window") })),
    };
    for (const [name, value] of Object.entries(rest)) layout[name] = /^[xy]axis/.test(name) ? axis(value) : value;
    Plotly.react(place, figure.data.map(paint), layout, { responsive: true, displaylogo: false, displayModeBar: false });
  }

  const drawAll = () => Object.keys(figures).forEach(draw);
  drawAll();
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  for (const picker of document.querySelectorAll("select[data-plot]")) {
    picker.addEventListener("change", () => draw(picker.dataset.plot));
  }
})();
