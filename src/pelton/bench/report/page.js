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

  function draw() {
    for (const [id, figure] of Object.entries(figures)) {
      const data = figure.data.map((trace) => {
        const ink = color("s" + (trace.meta.series % 8));
        return {
          ...trace, line: { color: ink, width: 2 }, textfont: { color: color("soft"), size: 11 },
          marker: { ...trace.marker, color: ink, line: { color: ink, width: 1.5 } },
        };
      });
      const layout = {
        xaxis: axis(figure.layout.xaxis), yaxis: axis(figure.layout.yaxis),
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: getComputedStyle(document.body).fontFamily, size: narrow.matches ? 11 : 13, color: color("ink") },
        margin: narrow.matches ? { l: 8, r: 12, t: 14, b: 8 } : { l: 16, r: 28, t: 20, b: 16 },
        legend: { orientation: "h", x: 0, y: 1.02, xanchor: "left", yanchor: "bottom" },
        hoverlabel: { align: "left", bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") } },
        showlegend: figure.data.length > 1, hovermode: "closest", dragmode: narrow.matches ? false : "zoom",
      };
      Plotly.react(id, data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
    }
  }

  if (Object.keys(figures).length) {
    draw();
    dark.addEventListener("change", draw);
    narrow.addEventListener("change", draw);
  }
})();
